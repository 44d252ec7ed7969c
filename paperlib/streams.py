"""Running text in parallel streams: truncated back-propagation through time, and evaluation.

Shapes: N tokens, B streams, n steps, T steps of one piece. ``StreamModel`` is the protocol of
:mod:`paperlib.models.stream`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from paperlib import distributed
from paperlib.models.stream import StreamModel

PIECE = 70
"""Steps that evaluation encodes at once, of no effect on its result where models have a state."""

VALIDATION_STREAMS = 16
"""In how many streams a validation or test text is read."""

WARM_UP = 256
"""Steps read before a stream's first counted word, so that it starts from a state that has
forgotten how many streams there are."""

Read = Callable[..., Tensor]
"""``read(*encoded, target)``, with one encoded piece a model, returns ``(T, B)`` or ``(T, B, …)``;
``model.log_q_of`` is one."""


class Piece(NamedTuple):
    """``length`` steps of all streams from ``start`` on: a batch of truncated BPTT."""

    start: int
    length: int


def equal_pieces(steps: int, length: int) -> list[Piece]:
    """Cut ``steps`` predicted words a stream into pieces of one length; the last may be shorter."""
    return [Piece(start, min(length, steps - start)) for start in range(0, steps, length)]


def pieces(steps: int, bptt: int, longest: int, rng: np.random.Generator) -> list[Piece]:
    """Cut ``steps`` predicted words a stream into pieces of random length (Merity et al., 2017).

    The base length is ``bptt``, in one case of twenty half of it; a piece's length is drawn from
    a normal distribution around that with standard deviation 5, and lies in 5…``longest``; the last
    piece may be shorter.
    """
    cut, start = [], 0
    while start < steps:
        base = bptt if rng.random() < 0.95 else bptt / 2
        length = min(max(5, int(rng.normal(base, 5))), longest, steps - start)
        cut.append(Piece(start, length))
        start += length
    return cut


def fixed_piece(models: Sequence[StreamModel]) -> int | None:
    """The ``piece`` of the models that have one.

    Raises :class:`ValueError` where they have different ones, and so different contexts.
    """
    lengths = {model.piece for model in models} - {None}
    if len(lengths) > 1:
        short, long = min(lengths), max(lengths)
        raise ValueError(f"one model reads pieces of {short} words, another of {long}")
    return next(iter(lengths), None)


def along(
    models: Sequence[StreamModel],
    words: Tensor,
    targets: Tensor,
    read: Read,
    states: list[tuple[Tensor, ...]] | None = None,
) -> Tensor:
    """``read`` at every step of ``words`` ``(n, B)``, states carried, without dropout.

    ``targets`` ``(n, B)`` are the words to predict. Returns ``(n, B)``, or ``(n, B, …)`` where
    ``read`` gives several numbers a word.
    """
    if states is None:
        states = [model.start(words.shape[1]) for model in models]
    values, length = [], fixed_piece(models) or PIECE
    with torch.no_grad():
        for piece, target in zip(words.split(length), targets.split(length), strict=True):
            encoded = []
            for number, model in enumerate(models):
                output, states[number] = model.encode(piece, states[number])
                encoded.append(output)
            values.append(read(*encoded, target))
    return torch.cat(values)


def over_tokens(
    models: Sequence[StreamModel], tokens: Tensor, eos: int, read: Read, streams: int
) -> Tensor:
    """``read`` at every token of ``tokens`` ``(N,)``, each once; returns ``(N,)``, or ``(N, …)``.

    The first token follows an ``eos``. The tokens are read in ``streams`` parts side by side, for
    speed; each but the first starts ``WARM_UP`` tokens early, so the result does not depend on
    their number but for what the state still holds of what came before that; of models that
    remember nothing, not at all, as parts begin where pieces do. Several processes that train
    together share the parts, and all get all values.
    """
    streams = max(1, min(max(streams, distributed.size()), len(tokens) // 2))
    mine = distributed.share(streams)
    length = -(-len(tokens) // streams)
    if piece := fixed_piece(models):
        length = -(-length // piece) * piece
    warm_up = min(WARM_UP, length)
    history = torch.cat([tokens.new_full((1,), eos), tokens])  # history[i] is followed by tokens[i]
    start = torch.arange(streams, device=tokens.device)[mine] * length
    from_the_start = int(mine.start == 0)

    def columns(offset: int, steps: int, first: int = 0) -> Tensor:
        steps = torch.arange(offset, offset + steps, device=tokens.device)
        return (start[first:] + steps[:, None]).clamp_max(len(tokens) - 1)

    states = [model.start(from_the_start) for model in models]
    if len(start) > from_the_start:
        early = columns(-warm_up, warm_up, first=from_the_start)
        states = [
            tuple(map(_join, zero, _state_after(model, history[early])))
            for model, zero in zip(models, states, strict=True)
        ]
    counted = columns(0, length)
    values = along(models, history[counted], tokens[counted], read, states)
    values = distributed.joined(values.transpose(0, 1), streams)
    return values.flatten(0, 1)[: len(tokens)]


def _state_after(model: StreamModel, words: Tensor) -> tuple[Tensor, ...]:
    state = model.start(words.shape[1])
    if model.piece:  # it remembers nothing
        return state
    with torch.no_grad():
        for piece in words.split(PIECE):
            _, state = model.encode(piece, state)
    return state


def _join(first: Tensor, others: Tensor) -> Tensor:
    return torch.cat([first, others])
