"""Frequency bins and their bootstrap intervals against direct counts and closed forms."""

import math

import numpy as np
import pytest

from paperlib.estimates import interval_of_mean
from paperlib.frequency_bins import change_by_bin, rank_bins


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (5, ["1–5"]),
        (60, ["1–10", "11–30", "31–60"]),
        (1000, ["1–10", "11–30", "31–100", "101–300", "301–1000"]),
        (1001, ["1–10", "11–30", "31–100", "101–300", "301–1000", "1001–1001"]),
    ],
)
def test_bins_hold_the_ranks_they_name(words, names):
    counts = np.random.default_rng(0).permutation(words) + 1
    bins, found = rank_bins(counts)
    assert found == names
    ranks = words - counts + 1
    for number, name in enumerate(found):
        low, high = map(int, name.split("–"))
        np.testing.assert_array_equal(bins == number, (ranks >= low) & (ranks <= high))


def test_the_interval_of_a_mean_is_the_normal_one_for_many_sentences():
    values = np.random.default_rng(1).normal(0.3, 2.0, size=4000)
    mean, low, high = interval_of_mean(values, 2000, 0)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.1 * half)


def test_sentences_are_resampled_whole():
    """Two equal tokens in each sentence say no more than one: the interval must not shrink."""
    rng = np.random.default_rng(2)
    values, counts = rng.normal(size=500), np.array([3, 1])
    arguments = {"counts": counts, "resamples": 1000, "seed": 0}
    once = change_by_bin(values, np.zeros(500, int), np.arange(500), **arguments)
    twice = change_by_bin(
        np.repeat(values, 2), np.zeros(1000, int), np.repeat(np.arange(500), 2), **arguments
    )
    for column in ("mean", "low", "high"):
        assert twice[column][0] == pytest.approx(once[column][0])
    assert twice["tokens"][0] == 1000


def test_intervals_of_bins_are_normal_for_many_sentences_and_missing_for_one():
    rng = np.random.default_rng(4)
    n, counts = 3000, np.arange(20, 0, -1)  # ids in the order of their ranks
    change = rng.normal(-0.2, 1.5, size=n + 1)
    words = np.append(np.zeros(n, int), 15)  # the last word once, in a sentence of its own
    table = change_by_bin(change, words, np.arange(n + 1), counts, resamples=2000, seed=0)
    first, last = (row for _, row in table.iterrows())
    half = 1.96 * change[:n].std() / math.sqrt(n)
    expected = (change[:n].mean() - half, change[:n].mean() + half)
    assert (first["low"], first["high"]) == pytest.approx(expected, abs=0.1 * half)
    assert last["mean"] == pytest.approx(change[n])
    assert np.isnan([last["low"], last["high"]]).all()


def test_one_sentence_has_no_intervals_and_none_no_rows():
    counts = np.array([5, 4, 3])
    one = change_by_bin(np.ones(3), np.arange(3), np.zeros(3, int), counts, resamples=9, seed=0)
    assert one["mean"].eq(1).all()
    assert one[["low", "high"]].isna().all(axis=None)
    none = np.array([], int)
    empty = change_by_bin(none, none, none, counts, resamples=9, seed=0)
    assert list(empty.columns) == list(one.columns)
    assert empty.empty


def test_a_bootstrap_needs_two_sentences():
    with pytest.raises(ValueError, match="at least two sentences, not 1"):
        interval_of_mean(np.ones(1), 10, 0)
