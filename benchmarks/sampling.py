"""Sampling and scoring the synthetic language, beside the dense ways.

The dense ways take the same language and the same kernel for its weights. To sample, they tabulate
p(k | i, j) for all V² contexts, then look words up in cumulative sums, or hand the rows of the
table to ``torch.multinomial``; to score, they take a row of V probabilities for every word.
"""

import numpy as np
import torch

from benchmarks.harness import Benchmark, Case, Work
from paperlib.trigram import TrigramLanguage

LENGTH = 10


def table(language: TrigramLanguage) -> np.ndarray:
    """p(k | i, j) for all contexts, ``(V + 1, V, V)`` float32."""
    words = np.arange(1, language.n_words + 1)
    rows = np.empty((language.n_words + 1, language.n_words, language.n_words), dtype=np.float32)
    for left2 in range(language.n_words + 1):
        rows[left2] = language.next_word_probs(left2, words)
    return rows


def sample_dense(n_words: int, sentences: int) -> np.ndarray:
    """By bisection in cumulative probabilities."""
    language, rng = TrigramLanguage(n_words=n_words), np.random.default_rng(1)
    rows = np.cumsum(table(language), axis=-1)
    padded = _begin(language, sentences)
    for position in range(1, LENGTH):
        context = padded[:, position - 1], padded[:, position] - 1
        padded[:, position + 1] = _bisect(rows, context, rng.random(sentences)) + 1
    return padded[:, 1:]


def sample_multinomial(n_words: int, sentences: int) -> np.ndarray:
    """By ``torch.multinomial`` on the contexts' rows, a thousand sentences at a time."""
    language, generator = TrigramLanguage(n_words=n_words), torch.Generator().manual_seed(1)
    rows = torch.from_numpy(table(language))
    padded = torch.from_numpy(_begin(language, sentences))
    for part in padded.split(1000):
        for position in range(1, LENGTH):
            chosen = rows[part[:, position - 1], part[:, position] - 1]
            drawn = torch.multinomial(chosen, 1, generator=generator)
            part[:, position + 1] = drawn.squeeze(1) + 1
    return padded[:, 1:].numpy()


def score_dense(n_words: int, test: np.ndarray) -> np.ndarray:
    """From a row of probabilities for every word."""
    language, padded = TrigramLanguage(n_words=n_words), np.pad(test, ((0, 0), (2, 0)))
    result = np.empty(test.shape)
    for at in range(test.shape[1]):
        probs = language.next_word_probs(padded[:, at], padded[:, at + 1])
        result[:, at] = np.log(probs[np.arange(len(test)), test[:, at] - 1])
    return result


def _begin(language: TrigramLanguage, sentences: int) -> np.ndarray:
    """Start token and first word of each sentence, and room for the rest."""
    first = np.cumsum(language.next_word_probs(0, 0))
    drawn = np.searchsorted(first, np.random.default_rng(0).random(sentences))
    padded = np.zeros((sentences, LENGTH + 1), dtype=np.int64)
    padded[:, 1] = np.minimum(drawn, language.n_words - 1) + 1
    return padded


def _bisect(rows: np.ndarray, row: tuple[np.ndarray, ...], values: np.ndarray) -> np.ndarray:
    """First column of each row of ``rows`` whose entry exceeds its value."""
    low, high = np.zeros(len(values), dtype=int), np.full(len(values), rows.shape[-1] - 1)
    while np.any(low < high):
        middle = (low + high) // 2
        above = rows[(*row, middle)] > values
        low, high = (
            np.where(above, low, np.minimum(middle + 1, high)),
            np.where(above, middle, high),
        )
    return low


def sample(n_words: int = 1000, sentences: int = 100_000, dense: bool = True) -> Case:
    """All ways start from nothing: the library's makes its language, the others their table too."""
    ways = {
        "ours": lambda: TrigramLanguage(n_words=n_words).sample(sentences, length=LENGTH, seed=1)
    }
    if dense:
        ways["dense table"] = lambda: sample_dense(n_words, sentences)
        ways["dense table, torch.multinomial"] = lambda: sample_multinomial(n_words, sentences)
    return Case(ways, Work(moved=8 * sentences * LENGTH), numpy_only=True)  # int64 are written


def score(n_words: int = 1000, sentences: int = 10_000, dense: bool = True) -> Case:
    """Exact log-probabilities of all words of some sentences.

    All words are weighed in every context that occurs, and in all that may follow the start token.
    """
    test = TrigramLanguage(n_words=n_words).sample(sentences, length=LENGTH, seed=1)
    contexts = np.unique(np.stack([test[:, :-2], test[:, 1:-1]], axis=-1).reshape(-1, 2), axis=0)
    ways = {"ours": lambda: TrigramLanguage(n_words=n_words).log_prob(test)}
    if dense:
        ways["dense rows"] = lambda: score_dense(n_words, test)
    return Case(
        ways,
        Work(moved=2 * 8 * test.size),  # int64 are read and float64 written
        evaluations=n_words * (n_words + len(contexts)),
        numpy_only=True,
    )


BENCHMARKS = [
    Benchmark("sampling", "100 000 sentences, 1000 words", sample, repeats=3, warm_up=False),
    Benchmark("scoring", "10 000 sentences, 1000 words", score, repeats=3),
]
