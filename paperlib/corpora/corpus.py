"""A corpus as models read it: token ids of three splits and the words they stand for."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from paperlib.corpora.text import EOS, SPLITS, CorpusError

_PART = {"train": "training", "valid": "validation", "test": "test"}


class InOnePart:
    """What trainings ask of a text, where all of ``train`` is one part, the same in each epoch."""

    train: np.ndarray
    parts_at_once: ClassVar[int] = 1

    def part_of(self, number: int) -> int:
        """See :class:`paperlib.stream_text.Text`."""
        return 0

    def part_tokens(self, number: int) -> int:
        """See :class:`paperlib.stream_text.Text`."""
        return len(self.train)

    def train_part(self, number: int) -> np.ndarray:
        """See :class:`paperlib.stream_text.Text`."""
        return self.train


@dataclass(frozen=True, eq=False)
class Corpus(InOnePart):
    """Running text in token ids; each line ends in the token ``<eos>``.

    Parameters
    ----------
    name
        What it was loaded by; ``"embedded"`` also where that stands in for another corpus.
    title
        For tables and figures; says so where a corpus is shortened.
    words
        The vocabulary, of the training text alone: ``words[i]`` has id i. Ids go by descending
        frequency, ties by first appearance, so a class of frequent words is a range of ids.
    train, valid, test
        Token ids ``(N,)``, int32.
    checksums
        SHA-256 of each split's whole text, by the names of the splits.
    """

    name: str
    title: str
    words: tuple[str, ...]
    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    checksums: dict[str, str]

    @property
    def n_words(self) -> int:
        """Size of the vocabulary, ``<eos>`` included."""
        return len(self.words)

    @property
    def eos(self) -> int:
        """Id of ``<eos>``."""
        return self.words.index(EOS)

    def head(
        self, train: int | None = None, valid: int | None = None, test: int | None = None
    ) -> "Corpus":
        """A copy with the first tokens of each split only; None, or too large a number, takes all.

        The vocabulary stays that of the whole training text, and so do the checksums.
        """
        wanted = dict(zip(SPLITS, (train, valid, test), strict=True))
        for split, number in wanted.items():
            if number is not None and number < 1:
                raise ValueError(f"{split} must keep at least one token, not {number}")
        shorter = {
            split: getattr(self, split)[:number]
            for split, number in wanted.items()
            if number is not None and number < len(getattr(self, split))
        }
        if not shorter:
            return self
        *others, last = (
            f"{len(tokens):,} {_PART[split]}".replace(",", " ") for split, tokens in shorter.items()
        )
        listed = f"{', '.join(others)} and {last}" if others else last
        return replace(self, title=f"{self.title}, first {listed} tokens", **shorter)


def streams(tokens: np.ndarray, number: int) -> np.ndarray:
    """``tokens`` ``(N,)`` as ``number`` streams B side by side: ``(n, B)``, n = N // B.

    Each column is continuous text; what does not fill a last row is left out. Raises what
    :func:`steps_of_streams` does.
    """
    steps = steps_of_streams(len(tokens), number)
    return tokens[: steps * number].reshape(number, steps).T


def steps_of_streams(tokens: int, number: int) -> int:
    """n of :func:`streams`.

    Raises :class:`CorpusError` where a stream would have fewer than two steps, one to read and
    one to predict.
    """
    steps = tokens // number
    if steps < 2:
        raise CorpusError(
            f"a text of {tokens} tokens is too short for a batch of {number} streams, which "
            f"takes at least {2 * number}; choose a smaller batch or a longer text"
        )
    return steps
