"""Text of any size into words and ids, beside a plain loop; and sampling the text of section 4.3.

All of ``paperlib shards`` in one process on a file of 20 MB of text, a part of section 4.3:
reading, cutting into words and signs, counting, and writing ids of the most frequent words. The
plain loop is a regular expression, ``Counter`` and a dictionary. Where a million words are sampled,
a second is a million words a second.
"""

import atexit
import gzip
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from unittest.mock import patch

import numpy as np

from benchmarks.harness import Benchmark, Case, Work
from paperlib.shards.prepare import TextSettings, prepare
from paperlib.shards.words import END, UNKNOWN
from paperlib.trigram import TrigramLanguage

BYTES = 20_000_000
PIECE = 1 << 21
VOCABULARY = 100_000
WORDS = re.compile(r"[\w'-]+|[^\w\s]")


def some_text(size: int, seed: int = 0) -> bytes:
    """Documents of about ``size`` bytes together; words are as frequent as Zipf has it."""
    rng = np.random.default_rng(seed)
    alphabet = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    lengths = rng.integers(2, 10, 200_000)
    vocabulary = np.array(["".join(rng.choice(alphabet, length)) for length in lengths])
    vocabulary[::7] = [word[:8] + "," for word in vocabulary[::7]]
    pieces = []
    while size > 0:
        drawn = vocabulary[np.minimum(rng.zipf(1.1, PIECE // 6), len(vocabulary)) - 1]
        pieces += [" ".join(line) for line in np.array_split(drawn, 1500)]
        size -= sum(map(len, pieces[-1500:])) + 3000
    return "\n\n".join(pieces).encode()


def ours(folder: Path) -> int:
    """As ``paperlib shards`` does it, from nothing; returns the number of tokens."""
    settings = TextSettings(vocabulary=VOCABULARY, valid=0, test=0)
    with TemporaryDirectory() as runs:
        own = {"PAPERLIB_RUNS": runs, "PAPERLIB_BAR_LINE": "-1"}
        with patch.dict(os.environ, own):
            return prepare(folder, settings, processes=1).tokens("train")


def plain(folder: Path) -> int:
    """From loops over lines and words."""
    (path,) = folder.iterdir()

    def lines():
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as file:
            yield from ([*found, END] for line in file if (found := WORDS.findall(line)))

    counted = Counter()
    for line in lines():
        counted.update(line)
    frequent = [word for word, _ in counted.most_common(VOCABULARY)]
    listed = dict.fromkeys([END, UNKNOWN, *frequent])
    ids = {word: number for number, word in enumerate(listed)}
    tokens = 0
    with TemporaryDirectory() as folder, open(Path(folder, "ids"), "wb") as file:
        for line in lines():
            file.write(np.array([ids.get(word, 1) for word in line], dtype=np.uint32).tobytes())
            tokens += len(line)
    return tokens


def both_passes(size: int = BYTES, suffix: str = ".txt") -> Case:
    """From a file on the disk, plain or compressed."""
    place = Path(mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    text = some_text(size)
    content = gzip.compress(text, compresslevel=6) if suffix == ".gz" else text
    Path(place, f"text{suffix}").write_bytes(content)
    tokens = plain(place)
    ways = {"ours": lambda: ours(place), "plain loop": lambda: plain(place)}
    moved = len(content) + 4 * tokens  # text is read and ids are written
    return Case(ways, Work(moved=moved), tokens=tokens, numpy_only=True)


def sampling(n_words: int = 100_000, sentences: int = 100_000) -> Case:
    """Sentences of ten words; a table of words × words is out of reach for others."""
    language = TrigramLanguage(n_words=n_words)
    words = 10 * sentences
    ways = {"ours": lambda: language.sample(sentences, 10, seed=1)}
    return Case(ways, Work(moved=8 * words), tokens=words, numpy_only=True)


BENCHMARKS = [
    Benchmark("text into shards", "20 MB of text, plain file", both_passes, repeats=3),
    Benchmark("text into shards", "20 MB of text, .gz", both_passes, {"suffix": ".gz"}, repeats=3),
    Benchmark("sampling at scale", "1 M words, vocabulary of 100 000", sampling, repeats=3),
]
