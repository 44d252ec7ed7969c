"""The text of the trainings of section 4: what they ask of it, and its streams.

Shapes: N tokens, B streams, n steps a stream.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from paperlib.corpora import steps_of_streams, streams
from paperlib.training import TrainingError


class Text(Protocol):
    """What is trained on: a :class:`~paperlib.corpora.Corpus`, or text that comes in parts."""

    n_words: int
    """V: ids are below it."""

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
