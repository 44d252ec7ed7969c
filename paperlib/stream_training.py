"""Training on running text in streams: what the three trainings of section 4 share.

Any :class:`paperlib.models.stream.StreamModel` can be trained. Shapes: B streams, n steps a stream,
T steps of a piece. Losses are per token, in nats.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from paperlib import distributed, hardware
from paperlib.captured import Replayed, can_replay
from paperlib.checkpoints import checksum, checksum_of_weights
from paperlib.models.stream import State, StreamModel
from paperlib.settings import StreamTraining
from paperlib.stream_text import Text, on_device, steps_of_parts, streams_of
from paperlib.streams import (
    VALIDATION_STREAMS,
    Piece,
    Read,
    equal_pieces,
    fixed_piece,
    over_tokens,
    pieces,
)
from paperlib.training import Task, TrainingError

_ALONE = "training with dropout runs in one process; set `regularised = false` to share it"
_OTHER_PIECE = "this network reads pieces of {} words; set `bptt = {}` to train it"
_SHARED = "the model that is trained shares weights with a frozen one; give it a copy of them"
_FROZEN = "no weight of the model that is trained asks for a gradient"
_OTHER_WORDS = "the models have different vocabularies, of {} words"
_TOO_MANY = "a batch of {} streams cannot be shared by more processes; raise `batch_size`"


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
    draw dropout of their own, where ``training.bptt`` is not the models' ``piece``, where nothing
    can be trained, or weights of a frozen model would be; what
    :meth:`~paperlib.models.stream.FromLogits.check` raises of a network of one's own; and
    :class:`ValueError` where the models' pieces are different.
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
        models = [*self._readers.values(), *others]
        _check_models(models, text.n_words)
        self._frozen_models = models[1:]
        self._piece = fixed_piece(models)
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

    def identity(self) -> dict:
        """The seed, the text by its length and its validation part, the frozen weights, and what
        draws the dropout: a CPU and a GPU draw otherwise."""
        return {
            "seed": self._seed,
            "kind of device": self._dropout and self._dropout.device.type,
            "text": self._text.part_tokens(0),
            "validation text": checksum(self.valid.cpu().numpy()),
            "frozen models": [checksum_of_weights(model) for model in self._frozen_models],
        }

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
            carried = [part for groups in self._states.values() for part in groups[group]]
            inputs = self.inputs(batch, columns)
            self._more = group + 1 < len(self._columns)  # several processes wait for the last one
            results = iter(self._run(*inputs, *carried))
            measures = torch.stack([next(results) for _ in self._names])
            for groups in self._states.values():
                groups[group] = tuple(next(results) for _ in groups[group])
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


def _check_models(models: Sequence[nn.Module], n_words: int) -> None:
    """Of the first model, which is trained, and the frozen ones."""
    trained, *frozen = models
    if not any(weight.requires_grad for weight in trained.parameters()):
        raise TrainingError(_FROZEN)
    own = {weight.data_ptr() for weight in trained.parameters() if weight.numel()}
    if any(weight.data_ptr() in own for model in frozen for weight in model.parameters()):
        raise TrainingError(_SHARED)
    sizes = {model.check(n_words) for model in models if hasattr(model, "check")}
    if len(sizes) > 1:
        raise TrainingError(_OTHER_WORDS.format(" and ".join(map(str, sorted(sizes)))))
