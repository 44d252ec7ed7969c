"""Loading and encoding a corpus, beside a plain loop over its lines: time and peak memory.

    PAPERLIB_DATA=… python -m benchmarks.bench_corpora

The plain loop reads each line twice, once for the vocabulary and once for the ids, as language
model code usually does. ``cold`` has no cache (but files in the system's own), ``cached`` has one;
both check SHA-256. Repetitions of all ways alternate.
"""

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.bench_trigram import peak_mb, seconds
from paperlib import corpora
from paperlib.corpora.known import KNOWN
from paperlib.corpora.text import SPLITS
from paperlib.progress import bar


def plain(folder: Path, name: str) -> dict[str, np.ndarray]:
    """Token ids of the three splits, from loops."""
    files = {split: folder / file for split, file in KNOWN[name].files().items()}
    ids: dict[str, int] = {}
    with files["train"].open(encoding="utf-8") as lines:
        for line in lines:
            for word in [*line.split(), "<eos>"]:
                if word not in ids:
                    ids[word] = len(ids)
    arrays = {}
    for split, file in files.items():
        tokens = []
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                for word in [*line.split(), "<eos>"]:
                    tokens.append(ids[word])
        arrays[split] = np.array(tokens, dtype=np.int32)
    return arrays


def cold(name: str) -> corpora.Corpus:
    """As the library does it the first time."""
    with tempfile.TemporaryDirectory() as runs:
        os.environ["PAPERLIB_RUNS"] = runs
        return corpora.load(name)


def cached(name: str, runs: str) -> corpora.Corpus:
    """As the library does it from then on."""
    os.environ["PAPERLIB_RUNS"] = runs
    return corpora.load(name)


def main() -> None:
    """Print a table of medians, ranges, peak memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=KNOWN, default="wikitext-2")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    if "PAPERLIB_DATA" not in os.environ:
        parser.error("name the folder of the corpora in the variable PAPERLIB_DATA")
    folder = Path(os.environ["PAPERLIB_DATA"]).expanduser() / given.corpus

    with tempfile.TemporaryDirectory() as runs:
        corpus = cached(given.corpus, runs)
        ways = {
            "cached": lambda: cached(given.corpus, runs),
            "cold": lambda: cold(given.corpus),
            "plain loop": lambda: plain(folder, given.corpus),
        }
        times = {name: [] for name in ways}
        for _ in bar(range(given.repeats), title="repetitions"):
            for name, way in ways.items():
                times[name].append(seconds(way))
        memory = {name: peak_mb(way) for name, way in bar(ways.items(), title="memory")}

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f}, ", end="")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}")
    sizes = ", ".join(f"{len(getattr(corpus, split))} {split}" for split in SPLITS)
    print(f"{corpus.title}: {sizes} tokens, {corpus.n_words} types, {given.repeats} repetitions\n")
    print(f"{'':14}" + "".join(f"{name:>10}" for name in ("median s", "min s", "max s", "peak MB")))
    for name, runs in times.items():
        print(f"{name:14}{statistics.median(runs):10.3f}{min(runs):10.3f}{max(runs):10.3f}", end="")
        print(f"{memory[name]:10.1f}")


if __name__ == "__main__":
    main()
