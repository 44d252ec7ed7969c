"""Sampling and scoring the synthetic language, beside the dense way: time and peak memory.

    python -m benchmarks.bench_trigram

Both ways take the same language and the same kernel for its weights, and start from nothing in
each repetition. The dense way to sample tabulates p(k | i, j) for all V² contexts and looks words
up; the dense way to score takes a row of V probabilities for every word. Repetitions of all ways
alternate, so that a busy moment of the machine hits each alike.
"""

import argparse
import gc
import os
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable

import numpy as np

from paperlib.progress import bar
from paperlib.trigram import TrigramLanguage


def sample(n_words: int, sentences: int) -> np.ndarray:
    """As the library does it."""
    return TrigramLanguage(n_words=n_words).sample(sentences, seed=1)


def sample_dense(n_words: int, sentences: int, length: int = 10) -> np.ndarray:
    """From a table of V³ cumulative probabilities, float32."""
    language, rng = TrigramLanguage(n_words=n_words), np.random.default_rng(1)
    words = np.arange(1, n_words + 1)
    table = np.empty((n_words + 1, n_words, n_words), dtype=np.float32)
    for left2 in range(n_words + 1):
        table[left2] = np.cumsum(language.next_word_probs(left2, words), axis=-1)
    result = np.empty((sentences, length), dtype=np.int64)
    first = np.cumsum(language.next_word_probs(0, 0))
    result[:, 0] = np.minimum(np.searchsorted(first, rng.random(sentences)), n_words - 1) + 1
    padded = np.pad(result, ((0, 0), (1, 0)))
    for position in range(1, length):
        context = padded[:, position - 1], padded[:, position] - 1
        padded[:, position + 1] = _bisect(table, context, rng.random(sentences)) + 1
    return padded[:, 1:]


def _bisect(table: np.ndarray, row: tuple[np.ndarray, ...], values: np.ndarray) -> np.ndarray:
    """First column of each row of ``table`` whose entry exceeds its value."""
    low, high = np.zeros(len(values), dtype=int), np.full(len(values), table.shape[-1] - 1)
    while np.any(low < high):
        middle = (low + high) // 2
        above = table[(*row, middle)] > values
        low, high = (
            np.where(above, low, np.minimum(middle + 1, high)),
            np.where(above, middle, high),
        )
    return low


def score(n_words: int, test: np.ndarray) -> np.ndarray:
    """As the library does it."""
    return TrigramLanguage(n_words=n_words).log_prob(test)


def score_dense(n_words: int, test: np.ndarray) -> np.ndarray:
    """From a row of probabilities for every word."""
    language, padded = TrigramLanguage(n_words=n_words), np.pad(test, ((0, 0), (2, 0)))
    result = np.empty(test.shape)
    for at in range(test.shape[1]):
        probs = language.next_word_probs(padded[:, at], padded[:, at + 1])
        result[:, at] = np.log(probs[np.arange(len(test)), test[:, at] - 1])
    return result


def seconds(call: Callable) -> float:
    """Wall time of one call."""
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_mb(call: Callable) -> float:
    """Most memory (MB) in use at once beyond what was there, NumPy's arrays included."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def main() -> None:
    """Print a table of medians, ranges, peak memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=1000, help="size of the vocabulary")
    parser.add_argument("--sentences", type=int, default=100_000, help="sentences to sample")
    parser.add_argument("--test", type=int, default=10_000, help="sentences to score")
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()

    test = sample(given.words, given.test)
    ways = {
        "sample": lambda: sample(given.words, given.sentences),
        "sample, dense": lambda: sample_dense(given.words, given.sentences),
        "score": lambda: score(given.words, test),
        "score, dense": lambda: score_dense(given.words, test),
    }
    times = {name: [] for name in ways}
    for _ in bar(range(given.repeats), title="repetitions"):
        for name, way in ways.items():
            times[name].append(seconds(way))
    memory = {name: peak_mb(way) for name, way in bar(ways.items(), title="memory")}

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f}, ", end="")
    print(f"Python {platform.python_version()}, NumPy {np.__version__}")
    print(
        f"{given.words} words, {given.sentences} sentences sampled, {given.test} scored, ", end=""
    )
    print(f"{given.repeats} repetitions\n")
    headings = ("median s", "min s", "max s", "ratio", "peak MB", "ratio")
    print(f"{'':14}" + "".join(f"{heading:>10}" for heading in headings))
    for name, runs in times.items():
        own = name.split(",")[0]
        median = statistics.median(runs)
        slower, larger = median / statistics.median(times[own]), memory[name] / memory[own]
        print(f"{name:14}{median:10.3f}{min(runs):10.3f}{max(runs):10.3f}{slower:10.1f}", end="")
        print(f"{memory[name]:10.1f}{larger:10.1f}")


if __name__ == "__main__":
    main()
