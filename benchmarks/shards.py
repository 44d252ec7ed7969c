"""Text of any size into words and ids, beside a plain loop; one core.

Both passes over 20 MB of text, a part of section 4.3: counting its words, and writing it as ids of
the most frequent of them. The plain loop is ``str.split``, ``Counter`` and a dictionary.
"""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.harness import Benchmark, Case, Work
from paperlib.shards import words
from paperlib.shards.draft import Draft

BYTES = 20_000_000
PIECE = 1 << 21
VOCABULARY = 100_000


def some_text(size: int, seed: int = 0) -> list[list[bytes]]:
    """Pieces of documents whose words are as often as Zipf has it, of about ``size`` bytes."""
    rng = np.random.default_rng(seed)
    alphabet = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = rng.integers(2, 10, 200_000)
    vocabulary = np.array(["".join(rng.choice(alphabet, length)) for length in lengths])
    pieces = []
    while size > 0:
        drawn = vocabulary[np.minimum(rng.zipf(1.1, PIECE // 6), len(vocabulary)) - 1]
        text = "\n\n".join(" ".join(line) for line in np.array_split(drawn, 1500)).encode()
        pieces.append(text.split(b"\n\n"))
        size -= len(text)
    return pieces


def ours(pieces: list[list[bytes]]) -> int:
    """As the library does it, in one thread; returns the number of tokens."""
    with TemporaryDirectory() as folder:
        draft = Draft(Path(folder) / "draft")
        found = (words.words_of(documents, "whitespace") for documents in pieces)
        counted = Counter(draft.write((0, some, 0) for some in found))
        frequent = [word for word, _ in counted.most_common(VOCABULARY)]
        vocabulary = words.Vocabulary(dict.fromkeys([words.END, words.UNKNOWN, *frequent]))
        return sum(len(ids) for _, ids, _ in draft.read(vocabulary.ids))


def plain(pieces: list[list[bytes]]) -> int:
    """From loops over documents and words."""
    counted = Counter()
    for documents in pieces:
        for document in documents:
            counted.update([*document.decode().split(), words.END])
    frequent = [word for word, _ in counted.most_common(VOCABULARY)]
    listed = dict.fromkeys([words.END, words.UNKNOWN, *frequent])
    ids = {word: number for number, word in enumerate(listed)}
    tokens = 0
    for documents in pieces:
        for document in documents:
            found = [*document.decode().split(), words.END]
            tokens += len(np.array([ids.get(word, 1) for word in found], dtype=np.uint32))
    return tokens


def both_passes(size: int = BYTES) -> Case:
    """Text in memory, so that reading it is no part of the time."""
    pieces = some_text(size)
    documents = [document for piece in pieces for document in piece]
    tokens = sum(document.count(b" ") + 2 for document in documents)  # the end of a line is one
    moved = sum(map(len, documents)) + 4 * tokens  # text is read and ids are written
    ways = {"ours": lambda: ours(pieces), "plain loop": lambda: plain(pieces)}
    return Case(ways, Work(moved=moved), tokens=tokens, numpy_only=True)


BENCHMARKS = [
    Benchmark("text into shards", "20 MB of text, both passes", both_passes, repeats=3),
]
