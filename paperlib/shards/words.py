"""From documents to words and ids, with Arrow's vectorised kernels."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

UNKNOWN, END = "<unk>", "<eos>"
"""Stands for every word outside of the vocabulary; ends every line."""

Tokens = Literal["words", "whitespace"]
"""``words``: runs of letters, digits, apostrophes, hyphens, underscores and angle brackets, so that
``<unk>`` stays whole, and every other sign for itself; ``whitespace``: what stands between spaces,
for text that is cut into words already."""

_SIGNS = r"([^\p{L}\p{N}\p{M}'\s<>_-])"


def words_of(documents: Sequence[bytes], tokens: Tokens) -> pa.DictionaryArray:
    """All words of some documents, UTF-8, in their order, each line ended by ``END``; lines without
    words are left out."""
    # Nothing white at the very end: Arrow's splitting may leave it to the last word.
    text = b"\n".join(documents).rstrip() + f" {END}".encode()
    ends = np.array([0, len(text)])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(text)]
    lines = pa.Array.from_buffers(pa.large_string(), 1, buffers)
    if tokens == "words":
        lines = pc.replace_substring_regex(lines, _SIGNS, r" \1 ")
    lines = pc.replace_substring(lines, "\n", f" {END} ")
    found = pc.utf8_split_whitespace(lines).flatten()
    encoded = found.filter(pc.not_equal(found, "")).dictionary_encode()
    end = pc.index(encoded.dictionary, END).as_py()
    ends = encoded.indices.to_numpy() == end
    is_empty = ends & np.concatenate([[True], ends[:-1]])  # some white signs are more than spaces
    return encoded.filter(pa.array(~is_empty)) if is_empty.any() else encoded


class Vocabulary:
    """Words by id: ``END``, ``UNKNOWN``, then the most frequent ones, the most frequent first."""

    def __init__(self, words: Sequence[str]):
        self.words = list(words)
        self._listed = pa.array(self.words, pa.large_string())
        self._unknown = self.words.index(UNKNOWN)

    def __len__(self) -> int:
        return len(self.words)

    def ids(self, words: pa.Array) -> np.ndarray:
        """The id of each word, ``(N,)`` uint32."""
        known = pc.index_in(words, self._listed).fill_null(self._unknown)
        return known.to_numpy().astype(np.uint32)
