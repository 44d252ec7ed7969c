"""Weights and training state on disk: written atomically, loaded without executing code."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from paperlib import distributed


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message is one sentence for the user."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path`` and move it there: all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def save_weights(path: Path, model: nn.Module) -> None:
    """Write the weights of ``model`` as safetensors, atomically."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save(path, lambda file: save_file(tensors, file))


def load_weights(path: Path, model: nn.Module) -> nn.Module:
    """Read weights into ``model`` and return it."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _unreadable(path, error) from None
    return model


def save_state(path: Path, state: dict) -> None:
    """Write a dictionary of tensors, numbers, strings and containers of these, atomically."""
    save(path, lambda file: torch.save(state, file))


def load_state(path: Path, device: torch.device) -> dict:
    """Read what :func:`save_state` wrote, with PyTorch's loader that runs no code."""
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a cut file surfaces as one of many kinds of error
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be read ({type(error).__name__}); delete its folder to compute it again"
    )
