"""The one training loop: language model, discriminator and fine-tuning differ only in their task.

A task says what a batch is, what its loss is and how to validate; the loop does SGD with gradient
clipping, decay on plateau with a return to the best weights, checkpoints and progress. A run that
was interrupted resumes in the middle of its epoch and ends with the same numbers.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from paperlib.checkpoints import load_state, save_state
from paperlib.progress import bar
from paperlib.settings import Training

CHECKPOINT_EVERY_SECONDS = 60.0


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


class Task(Protocol):
    """What is trained. Losses are per token, in nats."""

    title: str
    """Shown at the progress bar."""

    model: nn.Module
    """The network whose parameters are trained."""

    criterion: str
    """The value of :meth:`validate` that training is to lower."""

    tokens_per_example: int
    """Words a sentence, by which ``loss_per = "sentence"`` scales the mean loss."""

    def batches(self, epoch: int, size: int) -> Sequence:
        """The batches of an epoch, the same ones whenever it is asked for again."""

    def loss(self, batch) -> Tensor:
        """Mean loss per token of a batch, to be differentiated."""

    def validate(self) -> dict[str, float]:
        """Measures on the validation set."""

    def probe(self) -> list[float]:
        """Numbers to record after every step; an empty list where there is none."""


@dataclass
class Progress:
    """All of a training's state but tensors: plain numbers, so that it fits a checkpoint."""

    learning_rate: float
    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    decays: int = 0
    epochs_without_improvement: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    finished: bool = False
    history: list[dict] = field(default_factory=list)
    """One entry an epoch: epoch, learning_rate, train_loss and the measures of ``validate``."""
    probes: list[list[float]] = field(default_factory=list)
    """What ``probe`` returned before training and after every step."""


class Trainer:
    """Trains a task and keeps a checkpoint of everything that the rest of the run depends on."""

    def __init__(self, task: Task, settings: Training, checkpoint: Path):
        self.task = task
        self.settings = settings
        self.checkpoint = checkpoint
        self.progress = Progress(settings.learning_rate)
        self.optimizer = torch.optim.SGD(task.model.parameters(), lr=settings.learning_rate)
        self.best_weights: dict[str, Tensor] = {}
        self._saved_at = time.monotonic()

    def run(self) -> Progress:
        """Train to the end, from the checkpoint if there is one; the model ends with the best
        weights of all epochs, those before the first step included.

        Raises :class:`TrainingError` when the loss stops being finite.
        """
        if self.checkpoint.is_file():
            self._load()
        else:
            self._validate(train_loss=None)
            self._probe()
        while not self.progress.finished:
            self._epoch()
        self.task.model.load_state_dict(self.best_weights)
        return self.progress

    def _epoch(self) -> None:
        state, task = self.progress, self.task
        task.model.train()
        batches = task.batches(state.epoch, self.settings.batch_size)
        started = time.monotonic() - state.seconds
        title = f"{task.title}, epoch {state.epoch + 1}/{self.settings.max_epochs}"
        with bar(total=len(batches), initial=state.batch, title=title, unit="batch") as steps:
            for batch in batches[state.batch :]:
                loss = self._step(batch)
                state.loss_sum += loss
                state.batch += 1
                self._probe()
                steps.set_postfix(loss=f"{loss:.4f}", **self._last_measure(), refresh=False)
                steps.update()
                state.seconds = time.monotonic() - started
                if time.monotonic() - self._saved_at > CHECKPOINT_EVERY_SECONDS:
                    self._save()
        train_loss = state.loss_sum / len(batches)
        state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
        self._validate(train_loss)
        state.seconds = time.monotonic() - started
        self._schedule()
        self._save()

    def _step(self, batch) -> float:
        loss = self.task.loss(batch)
        scale = self.task.tokens_per_example if self.settings.loss_per == "sentence" else 1
        self.optimizer.zero_grad()
        (loss * scale).backward()
        nn.utils.clip_grad_norm_(self.task.model.parameters(), self.settings.clip)
        self.optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.task.title}: the loss is no longer finite in epoch "
                f"{self.progress.epoch + 1} at learning rate {self.progress.learning_rate:g}; "
                "lower the learning rate"
            )
        return value

    @torch.no_grad()
    def _validate(self, train_loss: float | None) -> None:
        state = self.progress
        self.task.model.eval()
        measures = self.task.validate()
        entry = {"epoch": state.epoch, "learning_rate": state.learning_rate}
        state.history.append(entry | {"train_loss": train_loss} | measures)
        if measures[self.task.criterion] < state.best:
            state.best, state.best_epoch = measures[self.task.criterion], state.epoch
            state.epochs_without_improvement = 0
            weights = self.task.model.state_dict()
            self.best_weights = {name: tensor.clone() for name, tensor in weights.items()}
        else:
            state.epochs_without_improvement += 1

    def _schedule(self) -> None:
        state, settings = self.progress, self.settings
        if state.epochs_without_improvement >= settings.patience:
            if state.decays == settings.max_decays:
                state.finished = True
            state.decays += 1
            state.epochs_without_improvement = 0
            state.learning_rate *= settings.decay
            for group in self.optimizer.param_groups:
                group["lr"] = state.learning_rate
            self.task.model.load_state_dict(self.best_weights)
        if state.epoch >= settings.max_epochs:
            state.finished = True

    @torch.no_grad()
    def _probe(self) -> None:
        if values := self.task.probe():
            self.progress.probes.append(values)

    def _last_measure(self) -> dict[str, str]:
        name = self.task.criterion
        return {f"valid_{name}": f"{self.progress.history[-1][name]:.5g}"}

    def _save(self) -> None:
        state = {
            "progress": asdict(self.progress),
            "model": self.task.model.state_dict(),
            "best_weights": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "random_state": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda_random_state"] = torch.cuda.get_rng_state()
        save_state(self.checkpoint, state)
        self._saved_at = time.monotonic()

    def _load(self) -> None:
        device = next(self.task.model.parameters()).device
        state = load_state(self.checkpoint, device)
        self.progress = Progress(**state["progress"])
        self.task.model.load_state_dict(state["model"])
        self.best_weights = state["best_weights"]
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random_state"].cpu())
        if "cuda_random_state" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda_random_state"].cpu())
