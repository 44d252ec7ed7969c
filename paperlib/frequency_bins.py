"""Changes by frequency bin, with bootstrap intervals over sentences.

Words are put into bins by their rank in the training text: 1–10, 11–30, 31–100, 101–300, …
"""

import numpy as np
import pandas as pd

from paperlib.estimates import bootstrap_weights, interval, resampled_sums


def ranks(counts: np.ndarray) -> np.ndarray:
    """The rank of each word, ``(V,)``, from training counts ``(V,)``.

    The first rank is the most frequent word's; ties go to the smaller id.
    """
    found = np.empty(len(counts), dtype=int)
    found[np.argsort(-counts, kind="stable")] = np.arange(1, len(counts) + 1)
    return found


def rank_bins(counts: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """The bin of each word, ``(V,)``, and the bins' names, from training counts ``(V,)``.

    The last bin ends with the vocabulary.
    """
    ends = [10]
    while ends[-1] < len(counts):
        ends.append(ends[-1] * 3 if str(ends[-1])[0] == "1" else ends[-1] // 3 * 10)
    ends[-1] = len(counts)
    starts = [1, *(end + 1 for end in ends[:-1])]
    names = [f"{start}–{end}" for start, end in zip(starts, ends, strict=True)]
    return np.searchsorted(ends, ranks(counts)), names


def change_by_bin(
    change: np.ndarray,
    words: np.ndarray,
    sentences: np.ndarray,
    counts: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Mean change of log q (nats a token) by frequency bin, 95 % intervals over sentences.

    Parameters
    ----------
    change, words, sentences
        ``(n,)`` each: the change of a token's log-probability, its word id, and the number 0…N−1 of
        the sentence it is in. Sentences are resampled whole, for their words are not independent.
    counts
        ``(V,)`` training counts of the words.

    Returns
    -------
    One row a bin that has tokens: ``bin``, ``tokens``, ``mean``, ``low``, ``high``. Where a bin's
    tokens are in one sentence only, the interval is not a number.
    """
    columns = ["bin", "tokens", "mean", "low", "high"]
    if len(change) == 0:
        return pd.DataFrame(columns=columns)
    bins, names = rank_bins(counts)
    shape = (int(sentences.max()) + 1, len(names))
    of_token = bins[words]
    sums, numbers = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (sentences, of_token), change)
    np.add.at(numbers, (sentences, of_token), 1)
    held = (numbers > 0).sum(axis=0)
    draws = bootstrap_weights(shape[0], resamples, seed) if shape[0] > 1 else [np.ones((1, 1))]
    with np.errstate(invalid="ignore"):  # a resample without a bin's words is left out below
        means = np.concatenate(
            [(weights @ sums) / (weights @ numbers) for weights in map(np.float64, draws)]
        )
    rows = []
    for number, name in enumerate(names):
        tokens = int(numbers[:, number].sum())
        if tokens == 0:
            continue
        low, high = interval(means[:, number]) if held[number] > 1 else (np.nan, np.nan)
        mean = sums[:, number].sum() / tokens
        rows.append((name, tokens, mean, low, high))
    return pd.DataFrame(rows, columns=columns)


def change_of_words(
    change: np.ndarray,
    words: np.ndarray,
    sentences: np.ndarray,
    those: np.ndarray,
    *,
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """Mean change of log q (nats a token) at some words, 95 % interval over sentences.

    ``change``, ``words`` and ``sentences`` as in :func:`change_by_bin`; ``those`` are word ids.
    Returns ``tokens``, ``mean``, ``low`` and ``high``; what cannot be had is not a number.
    """
    at = np.isin(words, those)
    sums = np.zeros((int(sentences.max()) + 1, 2))
    np.add.at(sums, sentences[at], np.stack([change[at], np.ones(at.sum())], axis=-1))
    total, tokens = sums.sum(axis=0)
    found = {"tokens": int(tokens), "mean": np.nan, "low": np.nan, "high": np.nan}
    if (sums[:, 1] > 0).sum() > 1:
        draws = resampled_sums(sums, resamples, seed)
        with np.errstate(invalid="ignore"):  # a resample without these words is left out
            low, high = interval(draws[:, 0] / draws[:, 1])
        found |= {"mean": total / tokens, "low": low, "high": high}
    return found
