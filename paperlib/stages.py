"""Stages: long computations that are done once, resume, and are found again by what they depend on.

A stage's folder is named by a hash of its settings and inputs. A finished folder is used as it
is; one that was interrupted goes on from its checkpoint; two processes never work in the same one.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from filelock import FileLock
from torch import nn

from paperlib import distributed, hardware, paths
from paperlib.checkpoints import load_json, load_weights, save_json, save_weights
from paperlib.settings import Training
from paperlib.training import Progress, Task, Trainer

DONE = "done.json"
"""Lies in a finished stage's folder and says what made it."""

VERSION = 1
"""Part of every hash: raise it when the meaning of a stage's settings changes."""


@dataclass(frozen=True)
class Trained:
    """A finished training: its curve, the weights it kept, and the folder they lie in."""

    network: nn.Module
    """Of the form that was trained; its weights are those of ``model`` once that was asked for."""
    progress: Progress
    folder: Path

    @cached_property
    def model(self) -> nn.Module:
        """The network with the weights it kept, which are read when they are first needed: who
        only looks at curves can do without the file."""
        return load_weights(self.folder / "model.safetensors", self.network).eval()

    @property
    def history(self) -> list[dict]:
        """One entry an epoch, from epoch 0 (before training)."""
        return self.progress.history

    @property
    def address(self) -> str:
        """Its folder in ``runs/``: kind and digest."""
        return f"{self.folder.parent.name}/{self.folder.name}"


def rates_along_kept_path(history: Sequence[Mapping], criterion: str) -> list[float]:
    """Learning rates of the epochs that led to a training's best weights, one an epoch.

    ``history`` has an entry an epoch, the first from before training. Each time the learning rate
    fell, and at the end, training went back to the weights that were best by ``criterion``; the
    epochs after these are left out.
    """
    path = []
    for before, entry in zip(history, [*history[1:], None], strict=True):
        if entry is None or entry["learning_rate"] < before["learning_rate"]:
            reached = [history[0][criterion], *(kept[criterion] for kept in path)]
            path = path[: int(np.argmin(reached))]
        path += [] if entry is None else [entry]
    return [entry["learning_rate"] for entry in path]


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
    if not _is_done(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock") if distributed.rank() == 0 else nullcontext():
            if not _is_done(folder):
                compute(folder)
                record = {
                    "commit": paths.commit(),
                    "hardware": hardware.describe(),
                    "processes": distributed.size(),
                }
                save_json(folder / DONE, {"kind": kind, "key": key} | record)
        distributed.wait()
    return folder


def _is_done(folder: Path) -> bool:
    """Whether any of the processes that train together sees that a stage is done."""
    return distributed.any_says((folder / DONE).is_file())


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
    precision that they mean on this machine, are added to it. Where that is up to the machine, what
    another one trained in its precision is taken too, so that ``runs/`` can be carried from one to
    another. Kept are the best weights, or the ``last`` ones.
    """

    def key_in(precision: str) -> dict:
        training = settings.model_dump(mode="json") | {"precision": precision}
        return key | {"training": training} | ({"kept": "last"} if last else {})

    here = hardware.precision(settings.precision)
    elsewhere = {"mixed", "float32"} - {here} if settings.precision == "auto" else ()
    own_key = key_in(here)
    for other in map(key_in, elsewhere):
        if not _is_done(folder_of(kind, own_key)) and _is_done(folder_of(kind, other)):
            own_key = other

    def compute(folder: Path) -> None:
        hardware.keep_memory()
        checkpoint = folder / "checkpoint.pt"
        progress = Trainer(make_task(model), settings, checkpoint, last=last).run()
        save_weights(folder / "model.safetensors", model)
        save_json(folder / "progress.json", asdict(progress))

    folder = once(kind, own_key, compute)
    if (checkpoint := folder / "checkpoint.pt").is_file():
        with suppress(OSError):  # of a folder that can only be read
            checkpoint.unlink()
    return Trained(model, Progress(**load_json(folder / "progress.json")), folder)


def starting_from(other: nn.Module, model: nn.Module) -> nn.Module:
    """``model`` with a copy of the weights of ``other``, a network of the same form."""
    model.load_state_dict(other.state_dict())
    return model
