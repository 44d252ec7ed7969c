"""The one training loop: language model, discriminator and fine-tuning differ only in their task.

A task says what a batch is, what its loss is and how to validate; the loop does SGD or Adam with
gradient clipping, averaged SGD, decay on plateau with a return to the best weights or linear decay,
checkpoints and progress. A run that was interrupted resumes in the middle of its epoch and ends
with the same numbers.
"""

import math
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from paperlib import distributed
from paperlib.averaging import Average
from paperlib.checkpoints import CheckpointError, load_state, put_weights, save_state
from paperlib.progress import bar
from paperlib.settings import Training

CHECKPOINT_EVERY_SECONDS = 60.0

ADAM_BETAS = (0.8, 0.99)
"""Shorter memories than usual, for trainings of few epochs."""

READ_EVERY = 16
"""Steps after which a GPU's losses are looked at: it need not wait for each."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message is one sentence for the user."""


class Task(ABC):
    """What is trained. Losses are per token, in nats."""

    title: str
    """Shown at the progress bar."""

    model: nn.Module
    """The network whose parameters are trained."""

    criterion: str
    """The value of :meth:`validate` that training is to lower."""

    @abstractmethod
    def batches(self, epoch: int, size: int) -> Sequence:
        """The batches of an epoch, the same ones whenever it is asked for again."""

    @abstractmethod
    def backward(self, batch) -> dict[str, Tensor]:
        """Add the gradients of a batch's objective to the parameters.

        Returns its mean loss per token as ``loss``, and what else is to be averaged over an epoch;
        of several processes that train together, each its part of these sums.
        """

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Measures on the validation set."""

    def tokens(self, batch) -> int:
        """Number of tokens of a batch, its weight in the mean over an epoch."""
        return 1

    def rate(self, batch) -> float:
        """Factor of the learning rate for this batch."""
        return 1.0

    def probe(self) -> list[float]:
        """Numbers to record after every step; an empty list where there is none."""
        return []

    def identity(self) -> dict:
        """What the training depends on beside its settings, by name, as plain values."""
        return {}

    def carried(self) -> dict[str, Tensor]:
        """Tensors, beside the weights, that the next batch depends on."""
        return {}

    def carry(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027, most carry nothing
        """Go on from what :meth:`carried` returned."""


@dataclass
class Progress:
    """All of a training's state but tensors: plain numbers, so that it fits a checkpoint."""

    learning_rate: float
    epoch: int = 0
    batch: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Measures of this epoch's batches so far, summed over tokens, and the number of tokens."""
    averaging_since: int | None = None
    """The epoch after which averaging began."""
    decays: int = 0
    epochs_without_improvement: int = 0
    best: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    finished: bool = False
    history: list[dict] = field(default_factory=list)
    """One entry an epoch: epoch, learning_rate, the measures of ``validate`` and the means over the
    epoch's batches, named ``train_…``."""
    probes: list[list[float]] = field(default_factory=list)
    """What ``probe`` returned before training and after every step."""

    def at_plateau(self, settings: Training) -> bool:
        """Whether a training by these settings ends here without any limit of epochs."""
        waits = settings.averaging == "triggered" and self.averaging_since is None
        waited = self.epochs_without_improvement >= settings.patience
        is_last = self.decays == settings.max_decays
        return settings.schedule == "plateau" and waited and is_last and not waits


class Trainer:
    """Trains a task and keeps a checkpoint of everything that the rest of the run depends on, if it
    has a path for it.

    The model ends with the best weights of all epochs, those before the first step included, or
    with the ``last`` ones.
    """

    def __init__(
        self, task: Task, settings: Training, checkpoint: Path | None, *, last: bool = False
    ):
        self.task = task
        self.settings = settings
        self.checkpoint = checkpoint
        self.last = last
        self.progress = Progress(settings.learning_rate)
        self.optimizer = optimizer_of(task.model, settings)
        self.average: Average | None = None
        self.best_weights: dict[str, Tensor] = {}
        self._saved_at = time.monotonic()
        self._save_is_due = False
        self._measured: list[tuple[dict[str, Tensor], int]] = []
        self._read_every = READ_EVERY if next(task.model.parameters()).is_cuda else 1
        self.last_loss = math.nan
        """Mean loss per token of the last batch whose measures have been looked at."""

    @torch.enable_grad()  # what reads without gradients may find that a training is missing
    def run(self) -> Progress:
        """Train to the end, from the checkpoint if there is one.

        Raises :class:`TrainingError` when the loss stops being finite, or when validation does not
        give a number; :class:`~paperlib.files.CheckpointError` when the checkpoint is that of
        another training.
        """
        if distributed.any_says(self.checkpoint is not None and self.checkpoint.is_file()):
            self._load()
        else:
            self._validate({})
            self._probe()
            if self.settings.averaging == "always":
                self._begin_averaging()
        while not self.progress.finished:
            self._epoch()
        if not self.last:
            self.task.model.load_state_dict(self.best_weights)
        elif self.average is not None:
            self.average.put_into(self.task.model)
        return self.progress

    def _epoch(self) -> None:
        state, task = self.progress, self.task
        task.model.train()
        batches = task.batches(state.epoch, self.settings.batch_size)
        started = time.monotonic() - state.seconds
        title = f"{task.title}, epoch {state.epoch + 1}/{self.settings.max_epochs}"
        with bar(total=len(batches), initial=state.batch, title=title, unit="batch") as steps:
            for batch in batches[state.batch :]:
                if self.settings.schedule == "linear":
                    done = (state.epoch + state.batch / len(batches)) / self.settings.max_epochs
                    state.learning_rate = self.settings.learning_rate * (1 - done)
                self.step(batch)
                state.batch += 1
                self._probe()
                loss = f"{self.last_loss:.4f}"
                steps.set_postfix(loss=loss, **self._last_measure(), refresh=False)
                steps.update()
                state.seconds = time.monotonic() - started
                if self._save_is_due:
                    self._save()
        self._read()
        tokens = state.sums.pop("tokens")
        means = {f"train_{name}": total / tokens for name, total in state.sums.items()}
        state.epoch, state.batch, state.sums = state.epoch + 1, 0, {}
        self._validate(means)
        state.seconds = time.monotonic() - started
        self._schedule()
        self._save()

    def step(self, batch) -> None:
        """Gradients of a batch, clipping and update; its measures count towards the epoch's."""
        task, state = self.task, self.progress
        self._set_rate(state.learning_rate * task.rate(batch))
        self.optimizer.zero_grad()
        measured = task.backward(batch)
        nn.utils.clip_grad_norm_(task.model.parameters(), self.settings.clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(task.model)
        self._measured.append((measured, task.tokens(batch)))
        if len(self._measured) == self._read_every:
            self._read()
            waited = time.monotonic() - self._saved_at
            self._save_is_due = distributed.any_says(waited > CHECKPOINT_EVERY_SECONDS)

    def loss(self) -> float:
        """Mean loss per token of the last batch, for which a GPU is waited for."""
        self._read()
        return self.last_loss

    def _read(self) -> None:
        """Take in the measures of the last batches, which stops a GPU until they are there."""
        state, waiting = self.progress, self._measured
        if not waiting:
            return
        values = torch.stack([torch.stack(list(measured.values())) for measured, _ in waiting])
        values = distributed.total(values)
        sums = Counter(state.sums)
        for row, (measured, tokens) in zip(values.tolist(), waiting, strict=True):
            means = dict(zip(measured, row, strict=True))
            if not math.isfinite(means["loss"]):
                if state.epoch == 0 and not sums:
                    raise TrainingError(
                        f"{self.task.title}: the loss is not finite before any step; look for NaN "
                        "and -inf in what the model gives"
                    )
                raise TrainingError(
                    f"{self.task.title}: the loss is no longer finite in epoch {state.epoch + 1} "
                    f"at learning rate {state.learning_rate:g}; lower the learning rate"
                )
            sums.update({name: mean * tokens for name, mean in means.items()} | {"tokens": tokens})
            self.last_loss = means["loss"]
        state.sums, self._measured = dict(sums), []

    @torch.no_grad()
    def _validate(self, means: dict[str, float]) -> None:
        state, model = self.progress, self.task.model
        model.eval()
        with self.average.applied(model) if self.average else nullcontext():
            measures = self.task.validate()
            entry = {"epoch": state.epoch, "learning_rate": state.learning_rate}
            state.history.append(entry | means | measures)
            value = measures[self.task.criterion]
            if math.isnan(value):
                raise TrainingError(
                    f"{self.task.title}: validation after epoch {state.epoch} gives no number as "
                    f"{self.task.criterion}; look at what the model says of the validation text"
                )
            if value < state.best or not self.best_weights:
                state.best, state.best_epoch = value, state.epoch
                state.epochs_without_improvement = 0
                self.best_weights = {
                    name: tensor.clone() for name, tensor in model.state_dict().items()
                }
            else:
                state.epochs_without_improvement += 1

    def _schedule(self) -> None:
        state, settings = self.progress, self.settings
        # With its last weights, which may be wanted.
        state.finished = state.epoch >= settings.max_epochs or state.at_plateau(settings)
        if state.finished or settings.schedule == "linear":
            return
        if settings.averaging == "triggered" and self.average is None:
            values = [entry[self.task.criterion] for entry in state.history[1:]]
            if non_monotonic(values, settings.nonmono):
                self._begin_averaging()
        elif state.epochs_without_improvement >= settings.patience:
            state.decays += 1
            state.epochs_without_improvement = 0
            state.learning_rate *= settings.decay
            self.task.model.load_state_dict(self.best_weights)
            self.optimizer.state.clear()
            if self.average is not None:
                self.average = Average(self.task.model)

    def _begin_averaging(self) -> None:
        self.progress.averaging_since = self.progress.epoch
        self.progress.epochs_without_improvement = 0
        self.average = Average(self.task.model)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @torch.no_grad()
    def _probe(self) -> None:
        if values := self.task.probe():
            self.progress.probes.append(values)

    def _last_measure(self) -> dict[str, str]:
        name = self.task.criterion
        return {f"valid_{name}": f"{self.progress.history[-1][name]:.5g}"}

    def _save(self) -> None:
        self._read()
        if self.checkpoint is None:
            self._save_is_due = False
            return
        state = {
            "settings": self.settings.model_dump(mode="json"),
            "task": self._identity,
            "progress": asdict(self.progress),
            "model": self.task.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_weights": self.best_weights,
            "average": self.average.state() if self.average else None,
            "carried": self.task.carried(),
        }
        save_state(self.checkpoint, state)
        self._saved_at, self._save_is_due = time.monotonic(), False

    def _load(self) -> None:
        model = self.task.model
        state = load_state(self.checkpoint, next(model.parameters()).device)
        self._check(state.get("settings", {}), state.get("task", {}))
        self.progress = Progress(**state["progress"])
        put_weights(model, state["model"], self.checkpoint)
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_weights = state["best_weights"]
        if state["average"] is not None:
            self.average = Average(model)
            self.average.load(state["average"])
        self.task.carry(state["carried"])

    @cached_property
    def _identity(self) -> dict:
        return self.task.identity()

    def _check(self, others: dict, task: dict) -> None:
        """Refuse the checkpoint of a training by other settings, or of another task."""
        own = self.settings.model_dump(mode="json")
        differ = [
            f"{name} {others[name]}, not {value}"
            for name, value in own.items()
            if others.get(name, value) != value
        ]
        differ += [
            f"another {name}"
            for name, value in self._identity.items()
            if task.get(name, value) != value
        ]
        if differ:
            raise CheckpointError(
                f"{self.checkpoint} is of another training ({'; '.join(differ)}); move it away, or "
                "train under another name"
            )


def optimizer_of(model: nn.Module, settings: Training) -> torch.optim.Optimizer:
    """The optimiser that ``settings`` name."""
    options = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    # On a CPU, PyTorch's fused step leaves most weights of half precision as they were.
    options["fused"] = all(w.dtype.itemsize >= 4 for w in model.parameters())
    if settings.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), betas=ADAM_BETAS, **options)
    return torch.optim.SGD(model.parameters(), **options)


def non_monotonic(values: Sequence[float], n: int) -> bool:
    """Whether the last value is worse than the best of those more than ``n`` epochs before it.

    The trigger of averaged SGD (Merity et al., 2017), with ``n`` as in their published code. The
    values are of the epochs so far, not of the network before them.
    """
    *previous, last = values
    return len(previous) > n and last > min(previous[:-n])
