"""The chosen word and the perturbation, against the softmax written out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlib.models import LSTM
from paperlib.perturb import amount_for, choose_word, lower_bias
from paperlib.settings import Model


def new_model():
    return LSTM(5, Model(embedding=3, hidden=3), torch.Generator().manual_seed(0)).double()


@given(word=st.integers(0, 4), exponent=st.floats(-9, -0.5))
def test_the_words_mean_probability_becomes_the_wanted_one(word, exponent):
    model, words = (
        new_model(),
        torch.randint(5, (50, 4), generator=torch.Generator().manual_seed(1)),
    )
    log_prob = model(words).log_softmax(-1)[..., word].detach().numpy()
    perturbed = lower_bias(model, word, amount_for(log_prob, 10**exponent))
    probability = perturbed(words).softmax(-1)[..., word].mean().item()
    assert probability == pytest.approx(10**exponent, rel=1e-6)


def test_only_the_words_own_odds_change_and_the_original_stays():
    model, words = new_model(), torch.tensor([[0, 1, 2, 3]])
    before = model(words).detach().clone()
    perturbed = lower_bias(model, 2, 3.0)
    assert torch.equal(model(words), before)
    expected = torch.zeros(5).double()
    expected[2] = -3
    torch.testing.assert_close(perturbed(words) - before, expected.expand(1, 4, 5))
    restored = lower_bias(perturbed, 2, -3.0)
    torch.testing.assert_close(restored(words), before)


def test_the_perturbation_stays_trainable():
    perturbed = lower_bias(new_model(), 2, 3.0)
    assert all(weights.requires_grad for weights in perturbed.parameters())


def test_the_chosen_word_has_the_nearest_frequency_among_the_candidates():
    counts = np.array([50, 30, 11, 6, 3])
    assert choose_word(counts, np.array([2, 3]), 0.10) == 2
    assert choose_word(counts, np.array([2, 3]), 0.30) == 2
    assert choose_word(counts, np.array([2, 3]), 0.05) == 3


def test_bad_input_gets_one_sentence():
    with pytest.raises(ValueError, match="word id 5 is not in the vocabulary of 5 words"):
        lower_bias(new_model(), 5, 1.0)
    with pytest.raises(ValueError, match="no word to choose from"):
        choose_word(np.array([1]), np.array([], dtype=int), 0.1)
    with pytest.raises(ValueError, match="no context is given"):
        amount_for(np.array([]), 0.1)
