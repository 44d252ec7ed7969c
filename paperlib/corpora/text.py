"""Text to token ids: words as white space parts them, ``<eos>`` after every line.

This is how the published sizes of Penn Treebank and WikiText-2 are counted: an empty line counts
one token. The vocabulary is that of the training text alone.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

EOS = "<eos>"
"""Token at the end of every line."""

UNK = "<unk>"
"""Word that stands for all words the vocabulary lacks; nothing but a word to the code here."""

SPLITS = ("train", "valid", "test")


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

    def tokens(self) -> list[str]:
        """Words in order, ``<eos>`` after each line; a last line needs no line break.

        Raises :class:`CorpusError` for bytes that are not UTF-8, a text without a word, and a text
        that brings its own ``<eos>``.
        """
        try:
            text = self.data.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = self.data.count(b"\n", 0, error.start) + 1
            raise CorpusError(
                f"{self.source}, line {line}: byte 0x{self.data[error.start]:02x} is not UTF-8; "
                "save the file as UTF-8"
            ) from None
        if not text or text.isspace():
            raise CorpusError(f"{self.source} has no words; it needs at least one line of text")
        if not text.endswith("\n"):
            text += "\n"
        if EOS in text:
            self._refuse_own_eos(text)
        return text.replace("\n", f" {EOS} ").split()

    def _refuse_own_eos(self, text: str) -> None:
        for number, line in enumerate(text.split("\n"), start=1):
            if EOS in line.split():
                raise CorpusError(
                    f"{self.source}, line {number}: the word {EOS} is added to every line when it "
                    "is read; take it out of the text"
                )


def encode(texts: Mapping[str, Text]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The vocabulary of ``texts["train"]`` and the token ids of each split, int32.

    Ids go by descending frequency in the training text, ``<eos>`` counted; of equally frequent
    words the one that appears first comes first.

    Raises :class:`CorpusError` for a word that the training text lacks, besides those of
    :meth:`Text.tokens`.
    """
    tokens = {split: texts[split].tokens() for split in SPLITS}
    words = tuple(word for word, _ in Counter(tokens["train"]).most_common())
    ids = {word: number for number, word in enumerate(words)}
    arrays = {}
    for split, sequence in tokens.items():
        try:
            found = map(ids.__getitem__, sequence)
            arrays[split] = np.fromiter(found, dtype=np.int32, count=len(sequence))
        except KeyError:
            raise _unseen(texts[split].source, sequence, ids) from None
    return words, arrays


def _unseen(source: str, sequence: list[str], ids: Mapping[str, int]) -> CorpusError:
    unseen = _numbered((word not in ids, word) for word in sequence)
    line, first = next(unseen)
    others = len({word for _, word in unseen} - {first})
    noun = "word" if others == 1 else "words"
    return CorpusError(
        f"{source}, line {line}: the word {first!r}"
        + (f" and {others} other {noun} of the file do not" if others else " does not")
        + f" occur in the training text; write {UNK} for such words, and for rare words of the "
        "training text too"
    )


def _numbered(marked: Iterator[tuple[bool, str]]) -> Iterator[tuple[int, str]]:
    """Words that are marked, each with the number of its line."""
    line = 1
    for mark, word in marked:
        if mark:
            yield line, word
        line += word == EOS
