"""Two readings of the same logits (§2.1): softmax for q(w|c), sigmoid for r(w|c).

Logits are ``(..., V)``, targets ``(...)`` of word ids; results are in nats.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.losses import CHUNK


class _LogSoftmaxAt(torch.autograd.Function):
    """log softmax of ``(N, V)`` logits at a word of each row, with one buffer of their size.

    It becomes the gradient in place, a chunk of rows in the cache at a time; plain autograd makes
    two more of that size.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, target: Tensor) -> Tensor:
        ctx.log_q = logits.log_softmax(-1)
        ctx.save_for_backward(target)
        return ctx.log_q.gather(-1, target).squeeze(-1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (target,) = ctx.saved_tensors
        gradient, ctx.log_q = ctx.log_q, None
        if gradient is None or torch.is_grad_enabled():  # on here only for create_graph
            raise RuntimeError("a word's log-probability can be differentiated only once")
        grad, rows = grad.unsqueeze(-1), max(1, CHUNK // gradient.shape[-1])
        for part, of_part in zip(gradient.split(rows), grad.split(rows), strict=True):
            part.exp_().mul_(-of_part)
        return gradient.scatter_add_(-1, target, grad), None


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
