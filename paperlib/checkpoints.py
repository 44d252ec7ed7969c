"""Weights and training state on disk: written atomically, loaded without executing code."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file as load_file_of_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from paperlib import distributed, files, paths
from paperlib.files import CheckpointError, write_atomically

__all__ = [
    "CheckpointError",
    "checksum",
    "checksum_of_weights",
    "load_arrays",
    "load_json",
    "load_state",
    "load_weights",
    "put_weights",
    "save",
    "save_json",
    "save_state",
    "save_weights",
    "write_atomically",
]


def save(path: Path, write: Callable[[Path], None]) -> None:
    """:func:`write_atomically`, but by the first of several processes that train together."""
    if distributed.rank() == 0:
        write_atomically(path, write)


def save_json(path: Path, value) -> None:
    """Write ``value`` as JSON, atomically."""
    text = json.dumps(value, indent=1) + "\n"
    save(path, lambda file: file.write_text(text, encoding="utf-8"))


def load_json(path: Path):
    """Read JSON; :class:`CheckpointError` names a file that is missing or damaged."""
    return files.load_json(path, _advice(path))


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the weights of ``model`` as safetensors, atomically."""
    # Copies, as the format has no tensors that share memory, such as tied embeddings.
    copied = {"memory_format": torch.contiguous_format}
    tensors = {name: tensor.clone(**copied) for name, tensor in model.state_dict().items()}
    save(path, lambda file: save_file(tensors, file))


def load_weights(path: Path, model: nn.Module) -> nn.Module:
    """Read weights into ``model`` and return it.

    :class:`CheckpointError` says whether the file is damaged or another network's.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None
    put_weights(model, tensors, path)
    return model


def put_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Give ``model`` the weights read from ``path``.

    Raises :class:`CheckpointError` where they are those of a network of another form.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise CheckpointError(
            f"{path} holds the weights of another network than this one; move it away, or train "
            "this one under another name"
        ) from None


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's little-endian bytes."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def checksum_of_weights(model: nn.Module) -> str:
    """SHA-256 of all that a model's ``state_dict`` holds."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def save_state(path: Path, state: dict) -> None:
    """Write a dictionary of tensors, numbers, strings and containers of these, atomically."""
    save(path, lambda file: torch.save(state, file))


def load_state(path: Path, device: torch.device) -> dict:
    """Read what :func:`save_state` wrote, with PyTorch's loader that runs no code."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a cut file surfaces as one of many kinds of error
        raise _unreadable(path, error) from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file, by name.

    Raises :class:`CheckpointError` for a file that is missing or damaged.
    """
    try:
        return load_file_of_arrays(path)
    except (OSError, SafetensorError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return files.unreadable(path, error, _advice(path))


def _advice(path: Path) -> str:
    # Nothing else can be computed again: neither results that are committed, nor one's own weights.
    return "delete its folder to compute it again" if path.is_relative_to(paths.runs()) else ""
