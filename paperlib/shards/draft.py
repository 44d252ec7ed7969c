"""The words of a group of text, numbered as they come, until the vocabulary of all is known.

So text is read, and cut into words, only once.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa

from paperlib.checkpoints import load_json, save_json
from paperlib.shards.documents import SPLITS


class Draft:
    """Files beside ``path``: numbers of the words of each split, and, once it is whole, the words.

    Pieces come out as they went in, with the bytes of text that they were.
    """

    def __init__(self, path: Path):
        self._record = path.with_suffix(".json")
        self._files = [path.with_suffix(f".{split}") for split in SPLITS]

    def write(self, pieces: Iterator[tuple[int, pa.DictionaryArray, int]]) -> dict[str, int]:
        """Take in the words of pieces, each with its split and bytes; returns the training counts
        by word."""
        numbers: dict[str, int] = {}
        counts = np.zeros(0, np.int64)
        sizes = []
        self._record.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in self._files]
            for split, found, size in pieces:
                of_piece = _numbered(found.dictionary.to_pylist(), numbers)
                ids = of_piece[found.indices.to_numpy()]
                files[split].write(ids.tobytes())
                sizes.append((split, len(ids), size))
                counts = np.concatenate([counts, np.zeros(len(numbers) - len(counts), np.int64)])
                if split == 0:
                    counts += np.bincount(ids, minlength=len(counts))
        save_json(self._record, {"pieces": sizes, "words": list(numbers)})
        return {word: int(n) for word, n in zip(numbers, counts, strict=True) if n}

    def read(self, ids_of_words) -> Iterator[tuple[int, np.ndarray, int]]:
        """Each piece's split, ids and bytes; ``ids_of_words`` maps words to an array of ids."""
        record = load_json(self._record)
        ids = ids_of_words(record["words"])
        at = [0] * len(SPLITS)
        for split, tokens, size in record["pieces"]:
            offset = at[split] * 4
            numbers = np.fromfile(self._files[split], np.uint32, tokens, offset=offset)
            at[split] += tokens
            yield split, ids[numbers], size

    def remove(self) -> None:
        """It is not needed any more."""
        for path in (self._record, *self._files):
            path.unlink(missing_ok=True)


def _numbered(words: list[str], numbers: dict[str, int]) -> np.ndarray:
    return np.array([numbers.setdefault(word, len(numbers)) for word in words], dtype=np.uint32)
