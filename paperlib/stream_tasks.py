"""The three trainings of section 4 on running text: language model, discriminator, fine-tuning.

Any :class:`paperlib.models.stream.StreamModel` can be trained. Shapes: B streams, n steps a stream,
T steps of a piece. Losses are per token, in nats.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from paperlib import distributed, hardware
from paperlib.captured import Replayed, can_replay
from paperlib.corpora import steps_of_streams, streams
from paperlib.evaluation import finetuning_measures, perplexity
from paperlib.losses import finetuning_loss
from paperlib.models.stream import State, StreamModel
from paperlib.settings import StreamTraining
from paperlib.streams import Piece, Read, along, equal_pieces, fixed_piece, over_tokens, pieces
from paperlib.training import Task, TrainingError

VALIDATION_STREAMS = 16

_ALONE = "training with dropout runs in one process; set `regularised = false` to share it"
_OTHER_PIECE = "a network that reads pieces of {} words is trained on such; set `bptt = {}`"
_TOO_MANY = "a batch of {} streams cannot be shared by more processes; raise `batch_size`"


class Text(Protocol):
    """What is trained on: a :class:`~paperlib.corpora.Corpus`, or text that comes in parts."""

    eos: int
    """Id of the token before the first word."""

    valid: np.ndarray
    """Token ids ``(N,)`` of the validation text."""

    parts_at_once: int
    """Parts that an epoch is trained on."""

    def part_of(self, number: int) -> int:
        """Which part comes as the one of this number; the same answer means the same text."""

    def part_tokens(self, number: int) -> int:
        """N of :meth:`train_part`."""

    def train_part(self, number: int) -> np.ndarray:
        """Token ids ``(N,)`` of the part that comes as the one of this number."""


class StreamTask(Task):
    """What the three tasks share: text in streams, states carried, pieces of random length.

    Of the frozen models beside the one that is trained, ``readers`` read every batch too, by the
    names that their states have, and ``others`` do not. Where one of them all remembers nothing,
    pieces are of one length, its ``piece``, so that a word has the same context for all of them,
    whenever it is read.

    With ``training.regularised`` there is dropout, from a generator seeded by ``seed``, and the
    model's own regularisation. The streams of a batch are worked on in ``training.parts`` groups,
    one after the other, to save memory; their gradients add up to the batch's. Several processes
    that train together share the streams, and their gradients add up too; a checkpoint holds the
    states of all streams, so that any number of processes goes on from it.

    Raises :class:`~paperlib.training.TrainingError` where processes have no stream, or would each
    draw dropout of their own, or where ``training.bptt`` is not the models' ``piece``, and
    :class:`ValueError` where they have different ones.
    """

    def __init__(
        self,
        title: str,
        model: nn.Module,
        text: Text,
        training: StreamTraining,
        seed: int,
        readers: Mapping[str, StreamModel] = MappingProxyType({}),
        others: Sequence[StreamModel] = (),
    ):
        self.title = title
        self.model = model
        self._readers: dict[str, StreamModel] = {"model": model, **readers}
        self.training = training
        self.eos = text.eos
        self.device = next(model.parameters()).device
        self._text = text
        self._parts: list[int] = []
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
        self._piece = fixed_piece([*self._readers.values(), *others])
        if self._piece not in (None, training.bptt):
            raise TrainingError(_OTHER_PIECE.format(self._piece, self._piece))
        self._columns = mine.chunk(training.parts)
        self._states: dict[str, list[State]] = {}
        self._names: tuple[str, ...] = ()
        self._more = False
        self._run = self._add_gradients
        if self._can_be_replayed():
            self._run = Replayed(self._add_gradients, model.parameters(), self._dropout)
        steps_of_parts(text, self._numbers(0), training.batch_size)

    def _can_be_replayed(self) -> bool:
        return distributed.size() == 1 and can_replay(self.device, self._readers.values())

    @property
    def train(self) -> Tensor:
        """This process's streams of the epoch's text, ``(n, B)``; at first of epoch 0."""
        if not self._parts:
            self._read(0)
        return self._train

    def batches(self, epoch: int, size: int) -> list[Piece]:
        """Pieces of the epoch's text, cut by (seed, epoch)."""
        self._read(epoch)
        bptt = self.training.bptt
        if self._piece:
            return equal_pieces(len(self.train) - 1, self._piece)
        rng = np.random.default_rng([self._seed, epoch])
        return pieces(len(self.train) - 1, bptt, bptt + self.training.bptt_excess, rng)

    def _read(self, epoch: int) -> None:
        numbers = self._numbers(epoch)
        parts = [self._text.part_of(number) for number in numbers]
        if parts != self._parts:
            self._parts = parts
            own = streams_of(self._text, numbers, self.training.batch_size, self._mine)
            self._train = on_device(own, self.device)
            self.new_text()

    def _numbers(self, epoch: int) -> range:
        at_once = self._text.parts_at_once
        return range(epoch * at_once, (epoch + 1) * at_once)

    def new_text(self) -> None:
        """Called when there is another text in ``train``."""

    def tokens(self, batch: Piece) -> int:
        """Predicted words."""
        return batch.length * self.training.batch_size

    def rate(self, batch: Piece) -> float:
        """The learning rate is in proportion to the length, so each word counts the same."""
        return batch.length / self.training.bptt

    def backward(self, batch: Piece) -> dict[str, Tensor]:
        """Gradients of the loss and the regularisation, group after group of streams."""
        self._begin(batch)
        totals = 0
        for group, columns in enumerate(self._columns):
            states = [part for states in self._states.values() for part in states[group]]
            inputs = self.inputs(batch, columns)
            self._more = group + 1 < len(self._columns)  # several processes wait for the last one
            results = iter(self._run(*inputs, *states))
            measures = torch.stack([next(results) for _ in self._names])
            for states in self._states.values():
                states[group] = tuple(next(results) for _ in states[group])
            totals = totals + measures * (len(columns) / self.training.batch_size)
        return dict(zip(self._names, totals, strict=True))

    def _begin(self, batch: Piece) -> None:
        """Let the models have a state: at the beginning of the text that before the first word."""
        for name, model in self._readers.items():
            # A state without tensors is not in a checkpoint.
            if batch.start == 0 or name not in self._states:
                self._states[name] = [model.start(len(columns)) for columns in self._columns]

    def _add_gradients(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Those of a group of streams, of its inputs and states; returns measures and new states.

        All that a batch needs comes in and goes out as tensors, so that a GPU can replay it.
        """
        sizes = [len(states[0]) for states in self._states.values()]
        until = len(tensors) - sum(sizes)
        inputs, rest = tensors[:until], iter(tensors[until:])
        states = {
            name: tuple(next(rest) for _ in range(size))
            for name, size in zip(self._states, sizes, strict=True)
        }
        share = inputs[0].shape[1] / self.training.batch_size
        losses: dict[str, Tensor] = {}

        def objective() -> Tensor:
            encoded = self._encode(inputs[0], states)
            losses.update(self.parts(encoded, *inputs[1:]))
            losses["loss"] = whole = sum(losses.values())
            if self.training.regularised:
                whole = whole + self.model.regularisation(encoded["model"])
            return whole * share

        with hardware.rounded_products(self._mixed):
            self.gradients.add(objective, more=self._more)
        self._names = tuple(losses)
        return (
            *(loss.detach() for loss in losses.values()),
            *(part for state in states.values() for part in state),
        )

    def _encode(self, words: Tensor, states: dict[str, State]) -> dict[str, Any]:
        """What each reader makes of ``words``; ``states`` go on."""
        encoded = {}
        for name, model in self._readers.items():
            learns = model is self.model
            dropout = self._dropout if learns else None
            with (
                torch.set_grad_enabled(learns),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed),
            ):
                encoded[name], states[name] = model.encode(words, states[name], dropout)
        return encoded

    def inputs(self, batch: Piece, columns: Tensor) -> tuple[Tensor, ...]:
        """Words of a group of streams, those that follow them, and what else ``parts`` takes."""
        rows = slice(batch.start, batch.start + batch.length)
        following = slice(rows.start + 1, rows.stop + 1)
        return self.train[rows, columns], self.train[following, columns]

    @abstractmethod
    def parts(self, encoded: dict[str, Any], target: Tensor, *others: Tensor) -> dict[str, Tensor]:
        """The mean loss per token of a group of streams of a piece, in its parts."""

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

    def parts(self, encoded, target) -> dict[str, Tensor]:
        """Cross-entropy alone."""
        return {"cross_entropy": -self.model.log_q_of(encoded["model"], target).mean()}

    def validate(self) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": perplexity(self.on_valid(self.model.log_q_of, self.model).cpu())}


class DiscriminatorStreams(StreamTask):
    """Eq. (6) against the frozen language model ``q0``, at real contexts only."""

    criterion = "d"

    def __init__(self, *args, q0: nn.Module, **options):
        self._q0 = q0.eval()
        super().__init__(*args, readers={"q0": q0}, **options)

    def parts(self, encoded, target) -> dict[str, Tensor]:
        """D^(q) and D^(p)."""
        with torch.no_grad():
            log_q0 = self._q0.log_q(encoded["q0"])
        d_q, d_p = self.model.discriminator_loss(encoded["model"], log_q0, target)
        return {"d_q": d_q.mean(), "d_p": d_p.mean()}

    def validate(self) -> dict[str, float]:
        """D and its two parts."""
        parts = discriminator_losses(self._q0, self.model, self.valid, self.eos)
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
        super().__init__(*args, others=[model for model in self._frozen if model], **options)
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

    def inputs(self, batch, columns) -> tuple[Tensor, ...]:
        """The frozen models' numbers too."""
        words_and_target = super().inputs(batch, columns)
        rows = slice(batch.start, batch.start + batch.length)
        frozen = (values[rows, columns] for values in (self._log_q0, self._log_odds))
        return *words_and_target, *frozen

    def parts(self, encoded, target, log_q0, log_odds) -> dict[str, Tensor]:
        """Cross-entropy and the estimated reverse KL divergence."""
        log_q = self.model.log_q_of(encoded["model"], target)
        cross_entropy, reverse_kl = finetuning_loss(log_q, log_q0, log_odds)
        return {"cross_entropy": cross_entropy.mean(), "reverse_kl": reverse_kl.mean()}

    def validate(self) -> dict[str, float]:
        """Perplexity, eq. (12), and how its estimate comes about."""
        log_q = self.on_valid(self.model.log_q_of, self.model)
        return finetuning_measures(log_q, *self._valid_frozen)


def discriminator_losses(
    q0: StreamModel, discriminator: StreamModel, tokens: Tensor, eos: int
) -> Tensor:
    """D^(q) and D^(p), eq. (6), at every one of ``tokens`` ``(N,)``: ``(N, 2)``."""

    def read(encoded0, encoded, target: Tensor) -> Tensor:
        parts = discriminator.discriminator_loss(encoded, q0.log_q(encoded0), target)
        return torch.stack(parts, dim=-1)

    return over_tokens([q0, discriminator], tokens, eos, read, VALIDATION_STREAMS)


def streams_of(text: Text, numbers: Sequence[int], streams_all: int, mine: slice) -> np.ndarray:
    """``mine`` of ``streams_all`` streams, of which each part gives as many: ``(n, B)``.

    Only the parts of these are fetched, and only the text of these is read. ``numbers`` are those
    of the parts. Raises what :func:`steps_of_parts` does.
    """
    steps = steps_of_parts(text, numbers, streams_all)
    each = streams_all // len(numbers)
    columns = []
    for place, number in enumerate(numbers):
        own = range(max(0, mine.start - place * each), min(each, mine.stop - place * each))
        if own:
            found = streams(text.train_part(number), each)
            columns += [found[:steps, stream] for stream in own]
    return np.stack(columns, axis=1)


def steps_of_parts(text: Text, numbers: Sequence[int], streams_all: int) -> int:
    """n of :func:`streams_of`: that of the shortest part.

    Raises :class:`~paperlib.training.TrainingError` where the parts cannot have as many streams
    each, and :class:`~paperlib.corpora.CorpusError` where one is too short for them.
    """
    if streams_all % len(numbers):
        raise TrainingError(
            f"a batch of {streams_all} streams cannot be shared out among {len(numbers)} parts; "
            "choose a `batch_size` that `parts_at_once` divides"
        )
    each = streams_all // len(numbers)
    return min(steps_of_streams(text.part_tokens(number), each) for number in numbers)


def on_device(tokens: np.ndarray, device: torch.device) -> Tensor:
    """Token ids as int64."""
    return torch.from_numpy(np.ascontiguousarray(tokens, dtype=np.int64)).to(device)
