"""Perplexities and frequency classes against loops over single words."""

import math

import numpy as np
import pytest
import torch

from paperlib.evaluation import BATCH_SIZE, FrequencyClasses, over_batches, perplexity, table1_row
from paperlib.models import LSTM
from paperlib.models.readings import log_q_of
from paperlib.settings import Model

IDS = np.array([[0, 1, 0], [2, 0, 3], [1, 4, 0]])


def test_classes_are_the_most_frequent_words_then_the_next():
    classes = FrequencyClasses.of(IDS, 6, frequent=1, almost_frequent=2)
    assert classes.counts.tolist() == [4, 2, 1, 1, 1, 0]
    assert classes.frequent.tolist() == [0]
    assert classes.almost_frequent.tolist() == [1, 2]  # of equals, the smaller id
    assert classes.rare.tolist() == [1, 2, 3, 4, 5]
    assert classes.shares() == pytest.approx((4 / 9, 3 / 9, 2 / 9))


def test_a_row_of_table_1_by_loops():
    generator = np.random.default_rng(0)
    log_q, log_p = -3 * generator.random((2, *IDS.shape))
    classes = FrequencyClasses.of(IDS, 6, frequent=1, almost_frequent=2)
    row = table1_row(log_q, log_p, IDS, classes, chosen=1)

    def by_loop(wanted):
        values = [log_q[place] for place in np.ndindex(IDS.shape) if wanted(IDS[place])]
        return math.exp(-sum(values) / len(values))

    differences = [log_q[place] - log_p[place] for place in np.ndindex(IDS.shape)]
    mean = sum(differences) / 9
    assert row["test_ppl"] == pytest.approx(by_loop(lambda word: True))
    assert row["freq_ppl"] == pytest.approx(by_loop(lambda word: word == 0))
    assert row["rare_ppl"] == pytest.approx(by_loop(lambda word: word != 0))
    assert row["other_ppl"] == pytest.approx(by_loop(lambda word: word != 1))
    assert row["ratio"] == pytest.approx(row["rare_ppl"] / row["freq_ppl"])
    assert row["diff_mean"] == pytest.approx(mean)
    assert row["diff_std"] == pytest.approx(
        math.sqrt(sum((difference - mean) ** 2 for difference in differences) / 9)
    )


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity():
    assert perplexity(torch.full((7, 3), -math.log(1000))) == pytest.approx(1000)


def test_every_word_is_counted_once_whatever_the_batches():
    generator = torch.Generator().manual_seed(0)
    model = LSTM(9, Model(embedding=3, hidden=3), generator).double()
    words = torch.randint(9, (BATCH_SIZE + 3, 4), generator=generator)
    log_probs = over_batches(model, words, log_q_of)
    assert log_probs.shape == words.shape
    one_by_one = torch.cat([log_q_of(model(row[None]), row[None]) for row in words[-5:]])
    torch.testing.assert_close(log_probs[-5:], one_by_one.detach())
