"""Sampling where a table of words × words would be too large: the staircase of proposals."""

import itertools
import tracemalloc

import numpy as np
import pytest
from appendix_a import UNLIKELY, Reference
from scipy.stats import chisquare

from paperlib import trigram
from paperlib.trigram import TrigramLanguage


@pytest.fixture
def staircase(monkeypatch):
    """Every vocabulary counts as large."""
    monkeypatch.setattr(trigram, "_TABLE", 0)


def test_no_draw_is_beyond_the_last_word():
    """Rounding may choose the empty step at the end of a row."""
    language = TrigramLanguage(n_words=4000)
    left = np.arange(1, 4001)
    largest = np.full(4000, np.nextafter(1.0, 0.0))
    word, _ = language._stairs.draw(left, largest, largest)
    assert (word >= 1).all()
    assert (word <= 4000).all()


def test_staircase_is_nowhere_below_the_weights_nor_far_above_them():
    language = TrigramLanguage(n_words=300)
    stairs, j = language._stairs, np.arange(1, 301)[:, None]
    edges = stairs._edges.astype(int)
    heights = np.zeros((300, 301))
    for column in range(edges.shape[1] - 1):
        first, end = edges[:, [column]], edges[:, [column + 1]]
        inside = (np.arange(301) >= first) & (np.arange(301) < end)
        heights += inside * stairs._height(j, first, end)
    words = np.arange(1, 301)
    envelope = words**-0.75 * language._nearest[words - j]
    assert (heights[:, 1:] >= envelope * (1 - 1e-12)).all()
    assert (heights[:, 1:] <= envelope * 2**1.5 * 1.1).all()
    np.testing.assert_allclose(stairs.areas, heights[:, 1:].sum(axis=1))


@pytest.mark.parametrize("options", [{}, {"start": 0}, {"start": 200}, {"shared_xi": True}])
def test_with_a_staircase_samples_follow_the_exact_probabilities(options, staircase):
    language = TrigramLanguage(n_words=7, **options)
    sentences = language.sample(60_000, length=3, seed=5)
    reference = Reference(language)
    triples = list(itertools.product(range(1, 8), repeat=3))
    pairs = reference.first_two()
    expected = [pairs[a, b] * reference.following(a, b)[c - 1] for a, b, c in triples]
    codes = np.ravel_multi_index((sentences - 1).T, (7, 7, 7))
    observed = np.bincount(codes, minlength=343)
    assert chisquare(observed, np.array(expected) * len(sentences)).pvalue > UNLIKELY


def test_with_a_staircase_words_of_a_larger_vocabulary_follow_them_too(staircase):
    language = TrigramLanguage(n_words=400)
    sentences = language.sample(40_000, length=4, seed=2)
    probs = language.next_word_probs(sentences[:, 1], sentences[:, 2])
    expected = probs.sum(axis=0)
    observed = np.bincount(sentences[:, 3] - 1, minlength=400)
    # Of independent draws with different probabilities, a frequency varies by Σ p (1 − p).
    scores = (observed - expected) / np.sqrt((probs * (1 - probs)).sum(axis=0))
    assert np.abs(scores).max() < 4.5
    assert scores.std() == pytest.approx(1, abs=0.15)


def test_with_a_staircase_fewer_or_shorter_sentences_are_the_beginning(staircase):
    language = TrigramLanguage(n_words=50)
    whole = language.sample(5000, length=6, seed=1)
    for n, length in ((5000, 1), (5000, 2), (4100, 3), (10, 6)):
        np.testing.assert_array_equal(language.sample(n, length, seed=1), whole[:n, :length])


def test_a_hundred_thousand_words_need_no_table():
    language = TrigramLanguage(n_words=100_000)
    tracemalloc.start()
    sentences = language.sample(2000, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e9
    assert sentences.min() == 1
    assert sentences.max() > 10_000
    with pytest.raises(ValueError, match="too large for 100000 words"):
        TrigramLanguage(n_words=100_000, start="joint").sample(1, seed=0)
