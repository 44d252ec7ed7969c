"""The words of some text, numbered as they come, until the vocabulary of all is known.

So text is read, and cut into words, only once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from paperlib.files import load_json, write_atomically, write_json


class Piece(NamedTuple):
    """Words in a row that belong to one split, and the bytes of text that they were."""

    split: int
    words: pa.DictionaryArray
    size: int


class Draft:
    """Files beside ``path``: the words, and their numbers in the order of the text.

    Pieces come out as they went in.
    """

    def __init__(self, path: Path):
        self._record, self._words, self._numbers = (
            path.with_suffix(suffix) for suffix in (".json", ".words", ".numbers")
        )

    def write(self, pieces: Sequence[Piece]) -> tuple[pa.Array, np.ndarray]:
        """Take in pieces; returns all their words, and how often each is in the training text."""
        self._record.parent.mkdir(parents=True, exist_ok=True)
        chunks = pa.chunked_array([piece.words for piece in pieces]).unify_dictionaries().chunks
        words = chunks[0].dictionary
        counts = np.zeros(len(words), np.int64)
        with self._numbers.open("wb") as file:
            for piece, chunk in zip(pieces, chunks, strict=True):
                numbers = chunk.indices.to_numpy()
                file.write(numbers.tobytes())
                if piece.split == 0:
                    counts += np.bincount(numbers, minlength=len(words))
        write_atomically(self._words, lambda path: _save(path, words))
        write_json(self._record, [(piece.split, len(piece.words), piece.size) for piece in pieces])
        return words, counts

    def read(self, ids_of_words: Callable[[pa.Array], np.ndarray]):
        """Each piece's split, ids and bytes; ``ids_of_words`` maps words to an array of ids."""
        with pa.memory_map(str(self._words)) as file:
            ids = ids_of_words(pa.ipc.open_file(file).get_batch(0)["word"])
        start = 0
        for split, tokens, size in load_json(self._record):
            numbers = np.fromfile(self._numbers, np.int32, tokens, offset=4 * start)
            start += tokens
            yield split, ids[numbers], size

    def remove(self) -> None:
        """It is not needed any more."""
        for path in (self._record, self._words, self._numbers):
            path.unlink(missing_ok=True)


def _save(path: Path, words: pa.Array) -> None:
    batch = pa.record_batch({"word": words})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
