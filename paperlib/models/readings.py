"""Two readings of the same logits (§2.1): softmax for q(w|c), sigmoid for r(w|c).

Logits are ``(..., V)``, targets ``(...)`` of word ids; results are in nats.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax of ``(N, V)`` logits at a word of each row, with one buffer of their size.

    It holds the softmax and becomes the gradient in place; plain autograd makes two more of that
    size, and takes exponentials twice.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        ctx.q = logits.softmax(-1)
        ctx.save_for_backward(target)
        # The largest of q is 1 / Σ_w exp(logit_w − largest logit), and never small: this is exact
        # where the word's own q is too small for a number.
        log_of_sum = logits.amax(-1) - ctx.q.amax(-1).log_()
        return logits.gather(-1, target).squeeze(-1) - log_of_sum

    @staticmethod
    def backward(ctx, grad: Tensor):
        (target,) = ctx.saved_tensors
        gradient, ctx.q = ctx.q, None
        if gradient is None or torch.is_grad_enabled():  # on here only for create_graph
            raise RuntimeError("a word's log-probability can be differentiated only once")
        grad = grad.unsqueeze(-1)
        return gradient.mul_(-grad).scatter_add_(-1, target, grad), None


def log_q(logits: Tensor) -> Tensor:
    """log q(w|c) of every word, ``(..., V)``."""
    return F.log_softmax(logits, dim=-1)


def log_q_of(logits: Tensor, target: Tensor) -> Tensor:
    """log q(w|c) of the words ``target``, ``(...)``, without the other words' log-probabilities."""
    rows, words = logits.flatten(0, -2), target.flatten()
    if logits.is_cuda:  # where memory is fast and each kernel counts
        values = -F.cross_entropy(rows, words, reduction="none")
    else:
        values = _LogSoftmaxAt.apply(rows, words.unsqueeze(-1))
    return values.view(target.shape)


def log_r(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log r(w|c) and log(1 − r(w|c)) of every word, ``(..., V)`` each."""
    return F.logsigmoid(logits), F.logsigmoid(-logits)


def log_odds_of(logits: Tensor, target: Tensor) -> Tensor:
    """log r − log(1 − r) of the words ``target``, ``(...)``: the sigmoid's logit itself."""
    return logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
