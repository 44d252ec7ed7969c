"""The three trainings of section 4 on running text: language model, discriminator, fine-tuning.

Any :class:`paperlib.models.stream.StreamModel` can be trained. Shapes: B streams, n steps a stream,
T steps of a piece. Losses are per token, in nats.
"""

from abc import abstractmethod
from collections.abc import Sequence
from itertools import zip_longest
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from paperlib import distributed, hardware
from paperlib.corpora import streams
from paperlib.evaluation import finetuning_measures, perplexity
from paperlib.losses import finetuning_loss
from paperlib.models.stream import State, StreamModel
from paperlib.settings import StreamTraining
from paperlib.streams import Piece, Read, along, over_tokens, pieces
from paperlib.training import Task, TrainingError

VALIDATION_STREAMS = 16

_ALONE = "training with dropout runs in one process; set `regularised = false` to share it"
_TOO_MANY = "a batch of {} streams cannot be shared by more processes; raise `batch_size`"


class Text(Protocol):
    """What is trained on: a :class:`~paperlib.corpora.Corpus`, or text that comes in parts."""

    eos: int
    """Id of the token before the first word."""

    valid: np.ndarray
    """Token ids ``(N,)`` of the validation text."""

    parts_at_once: int
    """Parts that an epoch is trained on."""

    def train_part(self, number: int) -> np.ndarray:
        """Token ids ``(N,)`` of a part of the text; the same array means the same text."""


class StreamTask(Task):
    """What the three tasks share: text in streams, states carried, pieces of random length.

    With ``training.regularised`` there is dropout, from a generator seeded by ``seed``, and the
    model's own regularisation. The streams of a batch are worked on in ``training.parts`` groups,
    one after the other, to save memory; their gradients add up to the batch's. Several processes
    that train together share the streams, and their gradients add up too; a checkpoint holds the
    states of all streams, so that any number of processes goes on from it.

    Raises :class:`~paperlib.training.TrainingError` where processes have no stream, or would each
    draw dropout of their own.
    """

    def __init__(
        self,
        title: str,
        model: nn.Module,
        text: Text,
        training: StreamTraining,
        seed: int,
    ):
        self.title = title
        self.model = model
        self.training = training
        self.eos = text.eos
        self.device = next(model.parameters()).device
        self._text = text
        self._parts: list[np.ndarray] = []
        self.valid = on_device(text.valid, self.device)
        self._seed = seed
        self._dropout = None
        if training.regularised:
            self._dropout = torch.Generator(self.device).manual_seed(seed)
        self._mixed = hardware.precision(training.precision) == "mixed"
        self.gradients = distributed.Gradients(model)
        self._mine = distributed.share(training.batch_size)
        mine = torch.arange(self._mine.stop - self._mine.start, device=self.device)
        if not len(mine) or (training.regularised and distributed.size() > 1):
            raise TrainingError(_ALONE if len(mine) else _TOO_MANY.format(training.batch_size))
        self._columns = mine.chunk(training.parts)
        self._states: dict[str, list[State]] = {}
        self._read(0)

    def batches(self, epoch: int, size: int) -> list[Piece]:
        """Pieces of the epoch's text, cut by (seed, epoch)."""
        self._read(epoch)
        bptt = self.training.bptt
        rng = np.random.default_rng([self._seed, epoch])
        return pieces(len(self.train) - 1, bptt, bptt + self.training.bptt_excess, rng)

    def _read(self, epoch: int) -> None:
        numbers = range(epoch * self._text.parts_at_once, (epoch + 1) * self._text.parts_at_once)
        parts = [self._text.train_part(number) for number in numbers]
        if any(part is not known for part, known in zip_longest(parts, self._parts)):
            self._parts = parts
            own = streams_of(parts, self.training.batch_size, self._mine)
            self.train = on_device(own, self.device)
            self.new_text()

    def new_text(self) -> None:
        """Called when there is another text in ``train``: this process's streams, ``(n, B)``."""

    def tokens(self, batch: Piece) -> int:
        """Predicted words."""
        return batch.length * self.training.batch_size

    def rate(self, batch: Piece) -> float:
        """The learning rate is in proportion to the length, so each word counts the same."""
        return batch.length / self.training.bptt

    def backward(self, batch: Piece) -> dict[str, Tensor]:
        """Gradients of the loss and the regularisation, group after group of streams."""
        totals: dict[str, Tensor] = {}
        with hardware.rounded_products(self._mixed):
            for group in range(len(self._columns)):
                for name, part in self._backward(batch, group).items():
                    totals[name] = totals.get(name, 0) + part
        return totals

    def _backward(self, batch: Piece, group: int) -> dict[str, Tensor]:
        columns = self._columns[group]
        share = len(columns) / self.training.batch_size
        losses: dict[str, Tensor] = {}

        def objective() -> Tensor:
            until = batch.start + batch.length
            words = self.train[batch.start : until, columns]
            target = self.train[batch.start + 1 : until + 1, columns]
            encoded = self.encode(self.model, "model", group, words, batch, self._dropout)
            losses.update(self.parts(encoded, target, batch, group))
            losses["loss"] = whole = sum(losses.values())
            if self.training.regularised:
                whole = whole + self.model.regularisation(encoded)
            return whole * share

        self.gradients.add(objective, more=group + 1 < len(self._columns))
        return {name: part.detach() * share for name, part in losses.items()}

    @abstractmethod
    def parts(self, encoded, target: Tensor, batch: Piece, group: int) -> dict[str, Tensor]:
        """The mean loss per token of a group of streams of a piece, in its parts."""

    def encode(
        self, model: StreamModel, name: str, group: int, words: Tensor, batch: Piece, dropout=None
    ):
        """Encode with the state that ``name`` had after the piece before this one."""
        if batch.start == 0 and group == 0:
            self._states[name] = [model.start(len(columns)) for columns in self._columns]
        states = self._states[name]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            encoded, states[group] = model.encode(words, states[group], dropout)
        return encoded

    def on_valid(self, read: Read, *models: StreamModel) -> Tensor:
        """``read`` at every token of the validation text."""
        return over_tokens(models, self.valid, self.eos, read, VALIDATION_STREAMS)

    def carried(self) -> dict[str, Tensor]:
        """Recurrent states of all streams, and the state of the dropout's generator."""
        tensors = {
            f"{name}.{number}": distributed.joined(torch.cat(groups), self.training.batch_size)
            for name, states in self._states.items()
            for number, groups in enumerate(zip(*states, strict=True))
        }
        if self._dropout is not None:
            tensors["dropout"] = self._dropout.get_state()
        return tensors

    def carry(self, tensors: dict[str, Tensor]) -> None:
        """Go on from these states."""
        tensors = dict(tensors)
        if self._dropout is not None:
            self._dropout.set_state(tensors.pop("dropout").cpu())
        states: dict[str, list[tuple[Tensor, ...]]] = {}
        for name, tensor in tensors.items():  # in the order in which they were carried
            groups = [tensor[self._mine][columns] for columns in self._columns]
            states.setdefault(name.rsplit(".", 1)[0], []).append(groups)
        self._states = {name: list(zip(*parts, strict=True)) for name, parts in states.items()}


class LanguageModelStreams(StreamTask):
    """Cross-entropy, eq. (1)."""

    criterion = "perplexity"

    def parts(self, encoded, target, batch, group) -> dict[str, Tensor]:
        """Cross-entropy alone."""
        return {"cross_entropy": -self.model.log_q_of(encoded, target).mean()}

    def validate(self) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": perplexity(self.on_valid(self.model.log_q_of, self.model).cpu())}


class DiscriminatorStreams(StreamTask):
    """Eq. (6) against the frozen language model ``q0``, at real contexts only."""

    criterion = "d"

    def __init__(self, *args, q0: nn.Module, **options):
        super().__init__(*args, **options)
        self._q0 = q0.eval()

    def parts(self, encoded, target, batch, group) -> dict[str, Tensor]:
        """D^(q) and D^(p)."""
        with torch.no_grad():
            words = self.train[batch.start : batch.start + batch.length, self._columns[group]]
            log_q0 = self._q0.log_q(self.encode(self._q0, "q0", group, words, batch))
        d_q, d_p = self.model.discriminator_loss(encoded, log_q0, target)
        return {"d_q": d_q.mean(), "d_p": d_p.mean()}

    def validate(self) -> dict[str, float]:
        """D and its two parts."""

        def read(encoded0, encoded, target: Tensor) -> Tensor:
            parts = self.model.discriminator_loss(encoded, self._q0.log_q(encoded0), target)
            return torch.stack(parts, dim=-1)

        parts = self.on_valid(read, self._q0, self.model)
        d_q, d_p = parts.double().mean(dim=0).tolist()
        return {"d": d_q + d_p, "d_q": d_q, "d_p": d_p}


class FinetuningStreams(StreamTask):
    """Eq. (12): cross-entropy plus the reverse KL divergence that the discriminator estimates.

    ``q0`` and ``discriminator`` are frozen and enter only at the true next word, so their two
    numbers a token are computed once. ``discriminator=None`` is r ≡ ½ (Table 2).
    """

    criterion = "perplexity"

    def __init__(self, *args, q0: nn.Module, discriminator: nn.Module | None, **options):
        self._frozen = q0.eval(), discriminator and discriminator.eval()
        super().__init__(*args, **options)
        valid_log_q0 = self.on_valid(q0.log_q_of, q0)
        valid_log_odds = torch.zeros_like(valid_log_q0)
        if discriminator is not None:
            valid_log_odds = self.on_valid(discriminator.log_odds_of, discriminator)
        self._valid_frozen = (valid_log_q0, valid_log_odds)

    def new_text(self) -> None:
        """Read the frozen models along the text, once."""
        (q0, discriminator), text = self._frozen, (self.train[:-1], self.train[1:])
        self._log_q0 = along([q0], *text, q0.log_q_of)
        self._log_odds = torch.zeros_like(self._log_q0)
        if discriminator is not None:
            self._log_odds = along([discriminator], *text, discriminator.log_odds_of)

    def parts(self, encoded, target, batch, group) -> dict[str, Tensor]:
        """Cross-entropy and the estimated reverse KL divergence."""
        rows = slice(batch.start, batch.start + batch.length)
        columns = self._columns[group]
        frozen = (values[rows, columns] for values in (self._log_q0, self._log_odds))
        cross_entropy, reverse_kl = finetuning_loss(self.model.log_q_of(encoded, target), *frozen)
        return {"cross_entropy": cross_entropy.mean(), "reverse_kl": reverse_kl.mean()}

    def validate(self) -> dict[str, float]:
        """Perplexity, eq. (12), and how its estimate comes about."""
        log_q = self.on_valid(self.model.log_q_of, self.model)
        return finetuning_measures(log_q, *self._valid_frozen)


def streams_of(parts: Sequence[np.ndarray], number: int, mine: slice) -> np.ndarray:
    """``mine`` of ``number`` streams, of which each part gives as many: ``(n, B)``.

    Only the text of these is read. Raises :class:`~paperlib.training.TrainingError` where the parts
    cannot have as many streams each.
    """
    if number % len(parts):
        raise TrainingError(
            f"a batch of {number} streams cannot be shared out among {len(parts)} parts; choose a "
            "`batch_size` that `parts_at_once` divides"
        )
    columns = [stream for part in parts for stream in streams(part, number // len(parts)).T]
    steps = min(map(len, columns))
    return np.stack([stream[:steps] for stream in columns[mine]], axis=1)


def on_device(tokens: np.ndarray, device: torch.device) -> Tensor:
    """Token ids as int64."""
    return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(device)
