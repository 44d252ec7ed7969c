"""The losses of section 2, in log space: eq. (6), (8), (10), (11) and (12).

All values are per token and in nats; nothing is averaged here. ``log_odds`` is
log r(w|c) − log(1 − r(w|c)), the log-odds that w came from the language model q_0 and not from
the data; for a plain sigmoid discriminator it is the logit itself. Fine-tuning *without* a
discriminator (r ≡ ½, Table 2) is ``log_odds = 0``.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 18
"""Vocabulary entries that the fused loss works on at once: temporaries stay in the cache."""


class _ExpectationUnderQ(torch.autograd.Function):
    """Σ_w exp(log_q0) · values over the last axis, with one buffer of that size at a time.

    Plain autograd keeps exp(log_q0) and the product alive together, forward and backward. What q_0
    gives no probability counts for nothing, also where its value is −∞.
    """

    @staticmethod
    def forward(ctx, log_q0: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(log_q0, values)
        found = None
        if not log_q0.is_cuda:  # a GPU may replay this, which must not wait for any value
            found = log_q0.exp().mul_(values).sum(-1)
        if found is None or found.isnan().any():
            q0 = log_q0.exp()
            found = (q0 * values).masked_fill_(q0 == 0, 0).sum(-1)
        return found

    @staticmethod
    def backward(ctx, grad: Tensor):
        log_q0, values = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        grad_log_q0 = grad_values = None
        if ctx.needs_input_grad[0]:
            q0 = log_q0.exp()
            grad_log_q0 = (q0 * values).masked_fill_(q0 == 0, 0).mul_(grad)
        if ctx.needs_input_grad[1]:
            grad_values = log_q0.exp().mul_(grad)
        return grad_log_q0, grad_values


def discriminator_loss(
    log_q0: Tensor, log_r: Tensor, log_not_r: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. (6) as its two parts, D^(q) and D^(p).

    D^(q) = −Σ_w q_0(w|c) log r(w|c) is exact over the vocabulary;
    D^(p) = −log(1 − r(w*|c)) takes the true next word w*.

    Parameters
    ----------
    log_q0
        ``(..., V)``, log-probabilities of the frozen language model.
    log_r, log_not_r
        ``(..., V)``, log r and log(1 − r) of the discriminator.
    target
        ``(...)``, int64, index of w* in the last axis.

    Returns
    -------
    d_q, d_p
        ``(...)`` each, nats; their sum is D̂(c, w*, φ). Where r = q_0/(q_0 + p) they are lowest;
        for q_0 = p that is log 2 each.
    """
    d_q = -_ExpectationUnderQ.apply(log_q0, log_r)
    d_p = -log_not_r.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return d_q, d_p


class _SigmoidDiscriminator(torch.autograd.Function):
    """Eq. (6) from ``(N, V)`` logits of q_0 and r, in chunks of rows.

    Value and gradient of the sum over the vocabulary come from one pass, while a chunk is in the
    cache, and the gradient is the only buffer of the inputs' size.
    """

    @staticmethod
    def forward(ctx, logits_q0: Tensor, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        ctx.gradient = torch.empty_like(logits) if ctx.needs_input_grad[1] else None
        rows = max(1, CHUNK // logits.shape[-1])
        d_q = []
        for start in range(0, len(logits), rows):
            part = slice(start, start + rows)
            q0, x = logits_q0[part].softmax(-1), logits[part]
            d_q.append(-torch.linalg.vecdot(q0, F.logsigmoid(x)))
            if ctx.gradient is not None:
                torch.mul(q0, torch.sigmoid(-x), out=ctx.gradient[part])
        at_target = logits.gather(-1, target)
        ctx.save_for_backward(target, at_target.sigmoid())
        return torch.cat(d_q), -F.logsigmoid(-at_target).squeeze(-1)

    @staticmethod
    def backward(ctx, grad_d_q: Tensor, grad_d_p: Tensor):
        target, r = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None or torch.is_grad_enabled():  # on here only for create_graph
            raise RuntimeError("the discriminator's loss can be differentiated only once")
        gradient.mul_(-grad_d_q.unsqueeze(-1)).scatter_add_(-1, target, r * grad_d_p.unsqueeze(-1))
        return None, gradient, None


def sigmoid_discriminator_loss(
    logits_q0: Tensor, logits: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. (6) for softmax q_0 and a plain sigmoid discriminator: the fast way in training.

    Equal to ``discriminator_loss(log_softmax(logits_q0), logsigmoid(logits), logsigmoid(-logits),
    target)``, but neither q_0 nor log r is ever held for the whole batch and log(1 − r) is computed
    for w* alone. Shapes as there; ``logits_q0`` gets no gradient.
    """
    vocabulary = logits.shape[-1]
    flat = (logits_q0.detach().reshape(-1, vocabulary), logits.reshape(-1, vocabulary))
    parts = _SigmoidDiscriminator.apply(*flat, target.reshape(-1, 1))
    return tuple(part.view(target.shape) for part in parts)


def nce_loss(log_p: Tensor, log_noise: Tensor, target: Tensor) -> Tensor:
    """Noise contrastive estimation (Gutmann & Hyvärinen, 2010), one noise word a data word.

    −log h(w*) − Σ_w noise(w) log(1 − h(w)), with h = p/(p + noise) the probability that a word is
    data; the expectation over the noise is exact. ``log_p`` ``(..., V)`` is the model's, *not*
    normalised. With noise q_0 and log p = log q_0 − log_odds this is eq. (6): see section 2.2.
    Shapes as in :func:`discriminator_loss`; nats, ``(...)``.
    """
    either = torch.logaddexp(log_p, log_noise)
    is_data = (log_p - either).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return -is_data - (log_noise.exp() * (log_noise - either)).sum(-1)


def log_p_hat(log_q0: Tensor, log_odds: Tensor) -> Tensor:
    """Eq. (8): log p̂(w|c) = log q_0(w|c) − log_odds, any shape, nats.

    p̂ is not normalised over the vocabulary.
    """
    return log_q0 - log_odds


def log_t(log_q: Tensor, log_q0: Tensor, log_odds: Tensor) -> Tensor:
    """Eq. (11): log t = log q_θ − log p̂ = log q_θ − log q_0 + log_odds, any shape, nats."""
    return log_q - log_p_hat(log_q0, log_odds)


def finetuning_loss(
    log_q: Tensor, log_q0: Tensor, log_odds: Tensor, *, largest_t: float | None = None
) -> tuple[Tensor, Tensor]:
    """Eq. (12) as its two parts, −log q_θ(w*|c) and t log t.

    All tensors are ``(...)`` and hold values at the true next word w*; ``log_q0`` and
    ``log_odds`` are frozen. Where t is larger than ``largest_t`` it counts as that, a constant;
    the paper has no such limit.

    Returns
    -------
    cross_entropy, reverse_kl
        ``(...)`` each, nats. ``reverse_kl`` is a one-sample estimate of KL(q_θ‖p̂) under p
        (eq. 10): single values go down to −1/e and have a heavy tail upwards.
    """
    log_ratio = log_t(log_q, log_q0, log_odds)
    if largest_t is not None:
        log_ratio = log_ratio.clamp(max=math.log(largest_t))
    return -log_q, log_ratio.exp() * log_ratio


def exact_reverse_kl(log_q: Tensor, log_p_hat: Tensor) -> Tensor:
    """Eq. (10)'s middle part as an exact sum, Σ_w q_θ(w|c) log(q_θ(w|c) / p̂(w|c)).

    It has no sampling noise where t log t of eq. (12) is one sample, but needs p̂ of every word.
    A factor of p̂, such as its normaliser, shifts the value and leaves the gradient.

    Parameters
    ----------
    log_q, log_p_hat
        ``(..., V)``, nats; ``log_q`` is normalised, ``log_p_hat`` (eq. 8) need not be.

    Returns
    -------
    ``(...)``, nats.
    """
    return _ExpectationUnderQ.apply(log_q, log_q - log_p_hat)
