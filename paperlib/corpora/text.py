"""Text to token ids: words as white space parts them, ``<eos>`` after every line.

This is how the published sizes of Penn Treebank and WikiText-2 are counted: an empty line counts
one token. The vocabulary is that of the training text alone.
"""

import hashlib
from codecs import BOM_UTF8
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EOS = "<eos>"
"""Token at the end of every line."""

UNK = "<unk>"
"""Word that stands for all words the vocabulary lacks; nothing but a word to the code here."""

SPLITS = ("train", "valid", "test")

_PIECE = 1 << 16  # bytes split into words at once, so that a text's words are never all in memory


class CorpusError(ValueError):
    """A corpus cannot be had or used as it is; the message is one sentence for the user."""


@dataclass(frozen=True)
class Text:
    """One split as it was read: ``source`` names it in messages, ``data`` are its bytes."""

    source: str
    data: bytes

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the bytes."""
        return hashlib.sha256(self.data).hexdigest()

    def pieces(self) -> Iterator[list[str]]:
        """Words in order, ``<eos>`` after each line, some hundred lines at a time.

        A last line needs no line break. Raises :class:`CorpusError` for bytes that are not UTF-8,
        a text without a word, and a text that brings its own ``<eos>``.
        """
        start = len(BOM_UTF8) if self.data.startswith(BOM_UTF8) else 0
        empty = True
        while start < len(self.data):
            end = self.data.find(b"\n", start + _PIECE) + 1 or len(self.data)
            text = self._decoded(start, end)
            if EOS in text:
                self._refuse_own_eos(start, text)
            if not text.endswith("\n"):
                text += "\n"
            words = text.replace("\n", f" {EOS} ").split()
            empty = empty and len(words) == text.count("\n")
            yield words
            start = end
        if empty:
            raise CorpusError(f"{self.source} has no words; it needs at least one line of text")

    def _decoded(self, start: int, end: int) -> str:
        try:
            return self.data[start:end].decode("utf-8")
        except UnicodeDecodeError as error:
            at = start + error.start
            raise CorpusError(
                f"{self.source}, line {self._line(at)}: byte 0x{self.data[at]:02x} is not UTF-8; "
                "save the file as UTF-8"
            ) from None

    def _refuse_own_eos(self, start: int, text: str) -> None:
        for number, line in enumerate(text.split("\n"), start=self._line(start)):
            if EOS in line.split():
                raise CorpusError(
                    f"{self.source}, line {number}: the word {EOS} is added to every line when it "
                    "is read; take it out of the text"
                )

    def _line(self, at: int) -> int:
        """Number of the line that has byte ``at``."""
        return self.data.count(b"\n", 0, at) + 1


def encode(texts: Mapping[str, Text]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The vocabulary of ``texts["train"]`` and the token ids of each split, int32.

    Ids go by descending frequency in the training text, ``<eos>`` counted; of equally frequent
    words the one that appears first comes first.

    Raises :class:`CorpusError` for a word that the training text lacks, besides those of
    :meth:`Text.pieces`.
    """
    appeared: defaultdict[str, int] = defaultdict()
    appeared.default_factory = appeared.__len__
    train = _looked_up(texts["train"], appeared)
    by_frequency = np.argsort(-np.bincount(train), kind="stable")
    new_id = np.empty(len(appeared), dtype=np.int32)
    new_id[by_frequency] = np.arange(len(appeared))

    in_order = list(appeared)
    words = tuple(in_order[number] for number in by_frequency)
    ids = {word: number for number, word in enumerate(words)}
    others = {split: _looked_up(texts[split], ids) for split in SPLITS if split != "train"}
    return words, {"train": new_id[train]} | others


def _looked_up(text: Text, ids: Mapping[str, int]) -> np.ndarray:
    """Token ids ``(N,)``."""
    try:
        return np.concatenate(
            [
                np.fromiter(map(ids.__getitem__, piece), dtype=np.int32, count=len(piece))
                for piece in text.pieces()
            ]
        )
    except KeyError:
        raise _unseen(text, ids) from None


def _unseen(text: Text, ids: Mapping[str, int]) -> CorpusError:
    """What to say about a text that has words without an id."""
    line, first_line, unseen = 1, 0, {}
    for piece in text.pieces():
        for word in piece:
            if word not in ids:
                first_line = first_line or line
                unseen[word] = True
            line += word == EOS
    first, *others = unseen
    noun = "word" if len(others) == 1 else "words"
    return CorpusError(
        f"{text.source}, line {first_line}: the word {first!r}"
        + (f" and {len(others)} other {noun} of the file do not" if others else " does not")
        + f" occur in the training text; write {UNK} for such words, and for rare words of the "
        "training text too"
    )
