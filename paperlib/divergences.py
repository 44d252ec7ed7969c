"""Exact divergences and exact moments of eq. (12), where the true distribution is known.

Everything is a sum over the vocabulary in float64. Shapes: ``(..., V)`` for distributions over the
next word in a context, ``(...)`` for a number a context. Values are in nats, gradients are by the
model's logits. p is the true distribution, q the model, p̂ the discriminator's estimate (eq. 8).
"""

import math

import torch
from torch import Tensor

from paperlib.settings import SecondTerm


def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) = Σ_w a(w) log(a(w)/b(w)), eq. (2) or (3), ``(...)`` nats."""
    log_a, log_b = log_a.double(), log_b.double()
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def second_term_moments(
    log_q: Tensor, log_p: Tensor, log_p_hat: Tensor, term: SecondTerm
) -> dict[str, Tensor]:
    """What fine-tuning's second term is on average over the true next word, and how it scatters.

    Returns
    -------
    ``(...)`` each:

    expected
        Mean of the term under w ~ p.
    variance
        Its variance under w ~ p: 0 for the sum.
    sum
        Σ_w q log(q/p̂) with the same p̂ and weight: what the term would be without sampling.
    true
        λ KL(q‖p): what the paper wants to lower.
    gradient_bias
        Squared distance of the whole loss's mean gradient from that of CE(p‖q) + λ KL(q‖p), eq.
        (9), by the logits.
    gradient_signal
        Squared norm of the whole loss's mean gradient.
    gradient_noise
        Variance (trace of the covariance) of the whole loss's gradient under w ~ p.
    """
    log_q, log_p, log_p_hat = (values.double() for values in (log_q, log_p, log_p_hat))
    if term.normalised:
        log_p_hat = log_p_hat.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    exact = kl(log_q, log_p_hat)
    if term.estimate == "sum":
        expected, variance = exact, torch.zeros_like(exact)
        slopes = torch.zeros_like(q)
        fixed = _gradient_of_sum(log_q, log_p_hat)
    else:
        log_t = log_q - log_p_hat
        inside = torch.ones_like(q)
        if term.largest_t is not None:
            limit = math.log(term.largest_t)
            inside = (log_t <= limit).double()
            log_t = log_t.clamp(max=limit)
        values = log_t.exp() * log_t
        expected = (p * values).sum(-1)
        variance = (p * (values - expected.unsqueeze(-1)) ** 2).sum(-1)
        slopes = log_t.exp() * (1 + log_t) * inside
        fixed = torch.zeros_like(q)
    # The gradient of a loss f(log q(w)) is f' · (e_w − q); that of −log q(w) has f' = −1.
    slopes = term.weight * slopes - 1
    mean_slope = (p * slopes).sum(-1, keepdim=True)
    sampled = p * slopes - q * mean_slope
    lengths = 1 - 2 * q + (q**2).sum(-1, keepdim=True)
    mean_gradient = sampled + term.weight * fixed
    wanted = q - p + term.weight * _gradient_of_sum(log_q, log_p)
    return {
        "expected": term.weight * expected,
        "variance": term.weight**2 * variance,
        "sum": term.weight * exact,
        "true": term.weight * kl(log_q, log_p),
        "gradient_bias": ((mean_gradient - wanted) ** 2).sum(-1),
        "gradient_signal": (mean_gradient**2).sum(-1),
        "gradient_noise": (p * slopes**2 * lengths).sum(-1) - (sampled**2).sum(-1),
    }


def _gradient_of_sum(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Of Σ_w q log(q/p) by the logits, ``(..., V)``: q (ℓ − Σ q ℓ) with ℓ = log q − log p."""
    log_ratio, q = log_q - log_p, log_q.exp()
    return q * (log_ratio - (q * log_ratio).sum(-1, keepdim=True))
