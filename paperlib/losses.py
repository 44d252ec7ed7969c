"""The losses of section 2, in log space: eq. (6), (8), (11) and (12).

All values are per token and in nats; nothing is averaged here. ``log_odds`` is
log r(w|c) − log(1 − r(w|c)), the log-odds that w came from the language model q_0 and not from
the data; for a plain sigmoid discriminator it is the logit itself. Fine-tuning *without* a
discriminator (r ≡ ½, Table 2) is ``log_odds = 0``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 18
"""Vocabulary entries that the fused loss works on at once: temporaries stay in the cache."""


class _ExpectationUnderQ(torch.autograd.Function):
    """Σ_w exp(log_q0) · values over the last axis, with one buffer of that size at a time.

    Plain autograd keeps exp(log_q0) and the product alive together, forward and backward.
    """

    @staticmethod
    def forward(ctx, log_q0: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(log_q0, values)
        return log_q0.exp().mul_(values).sum(-1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        log_q0, values = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        grad_log_q0 = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_log_q0 = log_q0.exp().mul_(values).mul_(grad)
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


class _SigmoidExpectation(torch.autograd.Function):
    """−Σ_w q_0(w) log σ(logits), ``(N,)`` from ``(N, V)``, in chunks of rows."""

    @staticmethod
    def forward(ctx, log_q0: Tensor, logits: Tensor) -> Tensor:
        ctx.save_for_backward(log_q0, logits)
        rows = zip(*_chunks(log_q0, logits), strict=True)
        return torch.cat([-(q.exp().mul_(F.logsigmoid(x))).sum(-1) for q, x in rows])

    @staticmethod
    def backward(ctx, grad: Tensor):
        log_q0, logits = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        rows = zip(*_chunks(log_q0, logits, grad_logits, grad.unsqueeze(-1)), strict=True)
        for q, x, out, scale in rows:
            torch.sigmoid(-x, out=out).mul_(q.exp()).mul_(-scale)
        return None, grad_logits


def _chunks(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    rows = max(1, CHUNK // tensors[0].shape[-1])
    return [tensor.split(rows) for tensor in tensors]


def sigmoid_discriminator_loss(
    log_q0: Tensor, logits: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. (6) for a plain sigmoid discriminator, r = σ(logits): the fast way in training.

    Equal to ``discriminator_loss(log_q0, logsigmoid(logits), logsigmoid(-logits), target)``, but
    log r is never held for the whole batch and log(1 − r) is computed for w* alone. Shapes as
    there; ``log_q0`` gets no gradient.
    """
    vocabulary = logits.shape[-1]
    flat = (log_q0.detach().reshape(-1, vocabulary), logits.reshape(-1, vocabulary))
    d_q = _SigmoidExpectation.apply(*flat).view(target.shape)
    d_p = -F.logsigmoid(-logits.gather(-1, target.unsqueeze(-1)).squeeze(-1))
    return d_q, d_p


def log_p_hat(log_q0: Tensor, log_odds: Tensor) -> Tensor:
    """Eq. (8): log p̂(w|c) = log q_0(w|c) − log_odds, any shape, nats.

    p̂ is not normalised over the vocabulary.
    """
    return log_q0 - log_odds


def log_t(log_q: Tensor, log_q0: Tensor, log_odds: Tensor) -> Tensor:
    """Eq. (11): log t = log q_θ − log p̂ = log q_θ − log q_0 + log_odds, any shape, nats."""
    return log_q - log_p_hat(log_q0, log_odds)


def finetuning_loss(log_q: Tensor, log_q0: Tensor, log_odds: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (12) as its two parts, −log q_θ(w*|c) and t log t.

    All arguments are ``(...)`` and hold values at the true next word w*; ``log_q0`` and
    ``log_odds`` are frozen.

    Returns
    -------
    cross_entropy, reverse_kl
        ``(...)`` each, nats. ``reverse_kl`` is a one-sample estimate of KL(q_θ‖p̂) under p
        (eq. 10): single values go down to −1/e and have a heavy tail upwards.
    """
    log_ratio = log_t(log_q, log_q0, log_odds)
    return -log_q, log_ratio.exp() * log_ratio
