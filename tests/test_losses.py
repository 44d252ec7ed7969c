"""Equations (6), (8), (11), (12) against float64, closed forms and the paper's identities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from paperlib import losses
from paperlib.losses import (
    discriminator_loss,
    exact_reverse_kl,
    finetuning_loss,
    log_p_hat,
    log_t,
    nce_loss,
    sigmoid_discriminator_loss,
)
from paperlib.models import readings

LOG_PROBABILITY = st.floats(math.log(1e-12), 0.0)
LOG_ODDS = st.floats(-27.0, 27.0)


def random_case(seed, shape=(3, 5), words=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    # A wide spread of logits makes probabilities from about 1e-12 to 1.
    logits = 8 * torch.randn(*shape, words, generator=generator, dtype=dtype)
    odds = 8 * torch.randn(*shape, words, generator=generator, dtype=dtype)
    target = torch.randint(words, shape, generator=generator)
    return logits.log_softmax(-1), odds, target


def test_discriminator_loss_is_equation_6_term_by_term():
    log_q0, odds, target = random_case(0)
    r = 1 / (1 + np.exp(-odds.numpy()))
    q0 = np.exp(log_q0.numpy())
    d_q, d_p = discriminator_loss(
        log_q0, torch.nn.functional.logsigmoid(odds), torch.nn.functional.logsigmoid(-odds), target
    )
    for i, j in np.ndindex(3, 5):
        expected = -sum(q0[i, j, w] * np.log(r[i, j, w]) for w in range(11))
        assert d_q[i, j].item() == pytest.approx(expected, rel=1e-12)
        assert d_p[i, j].item() == pytest.approx(-np.log(1 - r[i, j, target[i, j]]), rel=1e-9)


def test_an_undecided_discriminator_loses_log_4():
    log_q0, odds, target = random_case(1)
    half = torch.full_like(odds, math.log(0.5))
    d_q, d_p = discriminator_loss(log_q0, half, half, target)
    torch.testing.assert_close(d_q + d_p, torch.full_like(d_q, math.log(4)))


def test_the_optimal_discriminator_is_equation_7_and_returns_p():
    """Averaged over w* ~ p, the loss is stationary at r = q/(q + p), and p̂ is p there."""
    log_q0, _, _ = random_case(2, shape=())
    log_p, _, _ = random_case(3, shape=())
    odds = (log_q0 - log_p).requires_grad_()
    log_r, log_not_r = (torch.nn.functional.logsigmoid(sign * odds) for sign in (1, -1))
    rows = [part.expand(11, 11) for part in (log_q0, log_r, log_not_r)]
    d_q, d_p = discriminator_loss(*rows, torch.arange(11))
    (log_p.exp() * (d_q + d_p)).sum().backward()
    torch.testing.assert_close(odds.grad, torch.zeros_like(odds), atol=1e-14, rtol=0)
    torch.testing.assert_close(log_p_hat(log_q0, odds.detach()), log_p)


def test_noise_contrastive_estimation_is_its_definition_and_eq_6_in_other_words():
    log_q0, odds, target = random_case(4)
    scores = (log_q0 - odds).requires_grad_()
    q0, model = np.exp(log_q0.numpy()), np.exp(scores.detach().numpy())
    is_data = model / (model + q0)
    at_target = np.take_along_axis(is_data, target.numpy()[..., None], -1)[..., 0]
    expected = -np.log(at_target) - (q0 * np.log(q0 / (model + q0))).sum(-1)
    loss = nce_loss(scores, log_q0, target)
    np.testing.assert_allclose(loss.detach().numpy(), expected, rtol=1e-12)

    sigmoid = torch.nn.functional.logsigmoid
    logits = odds.requires_grad_()
    eq_6 = sum(discriminator_loss(log_q0, sigmoid(logits), sigmoid(-logits), target))
    torch.testing.assert_close(loss, eq_6, rtol=1e-12, atol=1e-12)
    by_scores, by_logits = (
        torch.autograd.grad(value.sum(), by)[0] for value, by in ((loss, scores), (eq_6, logits))
    )
    torch.testing.assert_close(by_scores, -by_logits, rtol=1e-9, atol=1e-12)


def test_a_word_that_both_models_mask_counts_for_nothing():
    """As a padding token at −∞, which never comes next."""
    generator = torch.Generator().manual_seed(0)
    logits_q0, logits = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (6,), generator=generator)
    results = []
    for masked in (True, False):
        words = slice(None) if masked else slice(4)
        own = logits[:, words].clone().requires_grad_()
        shown = [part.clone() for part in (logits_q0[:, words], own)]
        if masked:
            for part in shown:
                part[:, 4] = -math.inf
        log_q0, (log_r, log_not_r) = shown[0].log_softmax(-1), readings.log_r(shown[1])
        d = sum(discriminator_loss(log_q0, log_r, log_not_r, target))
        (gradient,) = torch.autograd.grad(d.sum(), own)
        results.append([d.detach(), gradient[:, :4]])
    torch.testing.assert_close(*results)


def test_a_word_that_all_models_mask_counts_for_nothing_in_the_exact_sum():
    generator = torch.Generator().manual_seed(0)
    logits, log_p_hat = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    results = []
    for words in (5, 4):
        own = logits[:, :words].clone().requires_grad_()
        shown, theirs = own.clone(), log_p_hat[:, :words].clone()
        shown[:, 4:] = theirs[:, 4:] = -math.inf
        value = exact_reverse_kl(shown.log_softmax(-1), theirs)
        (gradient,) = torch.autograd.grad(value.sum(), own)
        results.append([value.detach(), gradient[:, :4]])
    torch.testing.assert_close(*results)


def test_discriminator_loss_gradients_by_finite_differences():
    log_q0, odds, target = random_case(4, shape=(2,), words=4)
    arguments = [
        tensor.clone().requires_grad_()
        for tensor in (log_q0, torch.nn.functional.logsigmoid(odds), -odds.abs() - 0.1)
    ]
    assert torch.autograd.gradcheck(lambda *parts: discriminator_loss(*parts, target), arguments)


def test_discriminator_loss_holds_one_vocabulary_sized_buffer():
    words, tokens = 1000, 64
    log_q0, odds, target = random_case(5, shape=(tokens,), words=words, dtype=torch.float32)
    log_r = torch.nn.functional.logsigmoid(odds).requires_grad_()
    log_not_r = torch.nn.functional.logsigmoid(-odds)

    class Allocations(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.storages = {}

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else (result,):
                if isinstance(tensor, torch.Tensor) and tensor.numel() >= words * tokens:
                    self.storages[tensor.untyped_storage().data_ptr()] = tensor
            return result

    with Allocations() as forward:
        d_q, d_p = discriminator_loss(log_q0, log_r, log_not_r, target)
    given = {t.untyped_storage().data_ptr() for t in (log_q0, log_r, log_not_r)}
    assert len(set(forward.storages) - given) == 1
    with Allocations() as backward:
        torch.autograd.grad((d_q + d_p).sum(), log_r)
    assert len(set(backward.storages) - given) == 1


@pytest.mark.parametrize("chunk", [1, 25, 10_000])
def test_the_fused_sigmoid_loss_equals_equation_6(chunk, monkeypatch):
    monkeypatch.setattr(losses, "CHUNK", chunk)
    log_q0, odds, target = random_case(10)
    weights = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0)).double()
    gradients, values = [], []
    for fused in (True, False):
        logits = odds.clone().requires_grad_()
        log_r, log_not_r = (torch.nn.functional.logsigmoid(sign * logits) for sign in (1, -1))
        parts = (
            sigmoid_discriminator_loss(log_q0, logits, target)
            if fused
            else discriminator_loss(log_q0, log_r, log_not_r, target)
        )
        (weights[0] * parts[0] + weights[1] * parts[1]).sum().backward()
        values.append(torch.stack(parts))
        gradients.append(logits.grad)
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


@given(LOG_PROBABILITY, LOG_PROBABILITY, LOG_ODDS)
def test_float32_agrees_with_float64_from_1e_minus_12_to_1(log_q, log_q0, odds):
    exact = [
        torch.tensor(v, dtype=torch.float32).double().requires_grad_()
        for v in (log_q, log_q0, odds)
    ]
    single = [value.detach().float().requires_grad_() for value in exact]
    # One rounding of log t, whose parts reach 27 in size, is relative 27 · 2⁻²⁴ in t.
    for values in (exact, single):
        sum(finetuning_loss(*values)).backward()
    reference, result = sum(finetuning_loss(*exact)), sum(finetuning_loss(*single))
    size = abs(exact[0].item()) + math.exp(log_t(*exact).item()) * (1 + 2 * 81) + 1
    assert result.item() == pytest.approx(reference.item(), rel=1e-5, abs=2e-6 * size)
    gradient, reference_gradient = single[0].grad.item(), exact[0].grad.item()
    assert gradient == pytest.approx(reference_gradient, rel=1e-5, abs=2e-6 * size)


@given(LOG_PROBABILITY, LOG_PROBABILITY, LOG_ODDS)
def test_finetuning_loss_is_equation_12(log_q, log_q0, odds):
    q, q0 = math.exp(log_q), math.exp(log_q0)
    r, not_r = 1 / (1 + math.exp(-odds)), 1 / (1 + math.exp(odds))
    t = q / q0 * r / not_r
    values = (torch.tensor(value, dtype=torch.float64) for value in (log_q, log_q0, odds))
    cross_entropy, reverse_kl = finetuning_loss(*values)
    assert cross_entropy.item() == -log_q
    assert reverse_kl.item() == pytest.approx(t * math.log(t), rel=1e-9, abs=1e-12)


@given(st.floats(-700, 20))
def test_t_log_t_is_bounded_below_by_minus_1_over_e(log_ratio):
    zero = torch.zeros((), dtype=torch.float64)
    _, reverse_kl = finetuning_loss(torch.tensor(log_ratio, dtype=torch.float64), zero, zero)
    assert reverse_kl.item() >= -math.exp(-1) - 1e-15
    _, at_minimum = finetuning_loss(zero - 1, zero, zero)
    assert at_minimum.item() == pytest.approx(-math.exp(-1))


def test_the_mean_of_t_log_t_under_p_is_the_reverse_divergence():
    """Eq. (10): with p̂ = p, the expectation over w* ~ p is KL(q‖p), summed by hand here."""
    log_q, _, _ = random_case(6, shape=())
    log_q0, _, _ = random_case(7, shape=())
    log_p, _, _ = random_case(8, shape=())
    _, reverse_kl = finetuning_loss(log_q, log_q0, log_q0 - log_p)
    q, p = log_q.exp().numpy(), log_p.exp().numpy()
    expected = sum(q[w] * math.log(q[w] / p[w]) for w in range(11))
    assert (log_p.exp() * reverse_kl).sum().item() == pytest.approx(expected, rel=1e-9)


def test_without_a_discriminator_p_hat_is_q0():
    log_q0, _, _ = random_case(9)
    assert torch.equal(log_p_hat(log_q0, torch.zeros_like(log_q0)), log_q0)
    _, reverse_kl = finetuning_loss(log_q0, log_q0, torch.zeros_like(log_q0))
    assert torch.equal(reverse_kl, torch.zeros_like(reverse_kl))


def test_the_fused_loss_refuses_a_second_derivative():
    log_q0, odds, target = random_case(3)
    logits = odds.clone().requires_grad_()
    d_q, _ = sigmoid_discriminator_loss(log_q0, logits, target)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(d_q.sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(d_q.sum(), logits)
