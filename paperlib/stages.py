"""Stages: long computations that are done once, resume, and are found again by what they depend on.

A stage's folder is named by a hash of its settings and inputs. A finished folder is used as it
is; one that was interrupted goes on from its checkpoint; two processes never work in the same one.
"""

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from torch import nn

from paperlib import distributed, hardware, paths
from paperlib.checkpoints import load_json, load_weights, save_json, save_weights
from paperlib.settings import Training
from paperlib.training import Progress, Task, Trainer

VERSION = 1
"""Part of every hash: raise it when the meaning of a stage's settings changes."""


@dataclass(frozen=True)
class Trained:
    """A finished training: the weights it kept, its curve, and the folder they lie in."""

    model: nn.Module
    progress: Progress
    folder: Path

    @property
    def history(self) -> list[dict]:
        """One entry an epoch, from epoch 0 (before training)."""
        return self.progress.history

    @property
    def address(self) -> str:
        """Its folder in ``runs/``: kind and digest."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's little-endian bytes: data enter a stage's key by what they are."""
    return hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()


def digest(key: dict) -> str:
    """Twelve hexadecimal digits that name a stage with this ``key`` of plain values."""
    text = json.dumps({"version": VERSION} | key, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder_of(kind: str, key: dict) -> Path:
    """Where the stage ``kind`` with this ``key`` keeps its state."""
    return paths.runs() / kind / digest({"kind": kind} | key)


def once(kind: str, key: dict, compute: Callable[[Path], None]) -> Path:
    """Let ``compute`` fill the stage's folder unless that is done, and return the folder.

    Processes that train together compute together; the first of them holds the lock.
    """
    folder = folder_of(kind, key)
    done = folder / "done.json"
    if not distributed.any_says(done.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock") if distributed.rank() == 0 else nullcontext():
            if not distributed.any_says(done.is_file()):
                compute(folder)
                record = {
                    "commit": paths.commit(),
                    "hardware": hardware.describe(),
                    "processes": distributed.size(),
                }
                save_json(done, {"kind": kind, "key": key} | record)
        distributed.wait()
    return folder


def train(
    kind: str,
    key: dict,
    settings: Training,
    model: nn.Module,
    make_task: Callable[[nn.Module], Task],
    *,
    last: bool = False,
) -> Trained:
    """Train ``model`` once: from its weights as given, or from the last checkpoint.

    ``make_task`` gets the model and is called only where there is something left to train.
    ``key`` holds what the weights and the task depend on; the training settings, with the
    precision that they mean on this machine, are added to it. Kept are the best weights, or the
    ``last`` ones.
    """
    precision = hardware.precision(settings.precision)
    training = settings.model_dump(mode="json") | {"precision": precision}
    key = key | {"training": training} | ({"kept": "last"} if last else {})

    def compute(folder: Path) -> None:
        hardware.keep_memory()
        checkpoint = folder / "checkpoint.pt"
        progress = Trainer(make_task(model), settings, checkpoint, last=last).run()
        save_weights(folder / "model.safetensors", model)
        save_json(folder / "progress.json", asdict(progress))

    folder = once(kind, key, compute)
    (folder / "checkpoint.pt").unlink(missing_ok=True)
    load_weights(folder / "model.safetensors", model)
    return Trained(model.eval(), Progress(**load_json(folder / "progress.json")), folder)
