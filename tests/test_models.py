"""The LSTM against formulas written out, and the two readings of its logits."""

import numpy as np
import pytest
import torch
from conftest import needs_bfloat16
from hypothesis import given
from hypothesis import strategies as st

from paperlib.models import LSTM
from paperlib.models.readings import log_odds_of, log_q, log_q_of, log_r
from paperlib.settings import Model


def new_model(seed=0, n_words=6, **shape):
    shape = Model(embedding=3, hidden=4, layers=2, **shape)
    return LSTM(n_words, shape, torch.Generator().manual_seed(seed)).double()


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference_logits(model, sentence):
    """The network by the formulas of an LSTM, one word and one gate at a time, in NumPy."""
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    hidden = [np.zeros(4), np.zeros(4)]
    cell = [np.zeros(4), np.zeros(4)]
    logits = []
    for word in [model.start, *sentence[:-1]]:
        x = weights["embedding.weight"][word]
        for layer in range(2):
            gates = (
                weights[f"recurrent.weight_ih_l{layer}"] @ x
                + weights[f"recurrent.bias_ih_l{layer}"]
                + weights[f"recurrent.weight_hh_l{layer}"] @ hidden[layer]
                + weights[f"recurrent.bias_hh_l{layer}"]
            )
            i, f, g, o = gates.reshape(4, 4)
            cell[layer] = sigmoid(f) * cell[layer] + sigmoid(i) * np.tanh(g)
            hidden[layer] = x = sigmoid(o) * np.tanh(cell[layer])
        logits.append(weights["output.weight"] @ x + weights["output.bias"])
    return np.array(logits)


def test_the_network_is_an_lstm_of_two_layers():
    model = new_model()
    sentences = torch.tensor([[0, 5, 2, 2], [3, 1, 4, 0]])
    logits = model(sentences).detach().numpy()
    for row, sentence in enumerate(sentences.tolist()):
        np.testing.assert_allclose(logits[row], reference_logits(model, sentence), atol=1e-12)


def test_a_word_is_predicted_from_the_words_before_it_alone():
    model = new_model()
    sentence = torch.tensor([[0, 5, 2, 2]])
    for position in range(4):
        changed = sentence.clone()
        changed[0, position:] = 1
        before, after = model(sentence)[0], model(changed)[0]
        assert torch.equal(before[: position + 1], after[: position + 1])
        assert position == 3 or not torch.equal(before[position + 1 :], after[position + 1 :])


def test_the_papers_network_has_this_many_weights():
    model = LSTM(1000, Model(), torch.Generator().manual_seed(0))
    embeddings, recurrent, output = 1001 * 256, 2 * 4 * (2 * 256 * 256 + 2 * 256), 257 * 1000
    assert sum(weights.numel() for weights in model.parameters()) == embeddings + recurrent + output


def test_initial_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    first, again, other = new_model(0), new_model(0), new_model(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.embedding.weight, again.embedding.weight)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    assert 0.05 < first.output.weight.abs().max() <= 0.1
    assert first.output.bias.abs().max() == 0


@needs_bfloat16
def test_mixed_precision_touches_the_recurrent_layers_only():
    model = new_model().float()
    words = torch.tensor([[0, 5, 2, 2]])
    exact, rounded = model(words), model(words, mixed=True)
    assert rounded.dtype == torch.float32
    assert 0 < (exact - rounded).abs().max() < 0.01


@given(st.integers(0, 10_000))
def test_readings_are_normalised(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
    target = torch.randint(9, (3, 4), generator=generator)
    torch.testing.assert_close(log_q(logits).exp().sum(-1), torch.ones(3, 4).double())
    yes, no = log_r(logits)
    torch.testing.assert_close(yes.exp() + no.exp(), torch.ones_like(yes))
    at_target = target.unsqueeze(-1)
    torch.testing.assert_close(
        log_q_of(logits, target), log_q(logits).gather(-1, at_target)[..., 0]
    )
    torch.testing.assert_close(
        log_odds_of(logits, target), (yes - no).gather(-1, at_target)[..., 0], rtol=1e-6, atol=1e-9
    )


def test_the_gradient_at_a_word_is_softmax_less_one_hot():
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(3, 4, 9, generator=generator, dtype=torch.float64)
    target = torch.randint(9, (3, 4), generator=generator)
    weights = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    given = logits.clone().requires_grad_()
    (weights * log_q_of(given, target)).sum().backward()
    assert torch.equal(given, logits)
    one_hot = torch.eye(9, dtype=torch.float64)[target]
    expected = weights[..., None] * (one_hot - logits.softmax(-1))
    torch.testing.assert_close(given.grad, expected, rtol=1e-10, atol=1e-14)


def test_a_word_that_is_too_rare_for_a_number_still_has_a_log_probability():
    logits = torch.tensor([[[0.0, -500.0, 3.0]]])  # e^-500 is no float32
    expected = logits.double().log_softmax(-1)[..., 1]
    found = log_q_of(logits, torch.ones(1, 1, dtype=torch.int64))
    torch.testing.assert_close(found.double(), expected, rtol=1e-7, atol=0)


def test_a_reading_at_a_word_refuses_a_second_derivative():
    logits = torch.zeros(1, 1, 3).requires_grad_()
    value = log_q_of(logits, torch.zeros(1, 1, dtype=torch.int64)).sum()
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(value, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(value, logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_gpu_computes_the_same():
    model = new_model()
    words = torch.tensor([[0, 5, 2, 2]])
    torch.testing.assert_close(model.cuda()(words.cuda()).cpu(), new_model()(words))
