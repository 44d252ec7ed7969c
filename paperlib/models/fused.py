"""The two expensive sums over the vocabulary, value and gradient together, in chunks of rows.

Both start from latent vectors z, the tied embedding W ``(V, E)`` and the output bias b ``(V,)``.
The vocabulary-sized intermediate result of a chunk is kept for the gradient only while all of them
together are small (``KEEP``); otherwise it is computed again. Equal, up to rounding, to what
``tests/test_fused.py`` writes out in a line or two each.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1 << 20
"""Logits that are worked on at once: few enough for the cache of a CPU."""

KEEP = 1 << 25
"""Logits in all up to which they are kept for the gradient: 128 MiB in float32."""


def _chunks(rows: int, entries: int, device: torch.device) -> Iterator[slice]:
    # A GPU needs more work at once than a CPU's cache holds.
    size = max(1, CHUNK * (64 if device.type == "cuda" else 1) // entries)
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))


def _keeps(ctx, entries: int, with_gradient: bool) -> bool:
    # Without gradients autograd still says that a parameter needs one, and hides in ``forward``
    # whether gradients are on: ``with_gradient`` is from outside.
    return with_gradient and any(ctx.needs_input_grad) and entries <= KEEP


def _refuse_second_backward(ctx) -> None:
    # Gradients are on here only for ``create_graph``. PyTorch's once_differentiable would let that
    # pass where the gradient from outside is a constant, and the second derivative would be zero.
    if torch.is_grad_enabled() or (ctx.kept is not None and not ctx.kept):
        raise RuntimeError("a sum over the vocabulary can be differentiated only once")


class _TargetLogSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, embedding, bias, target, with_gradient: bool) -> Tensor:
        ctx.save_for_backward(latents, embedding, bias, target)
        keep = _keeps(ctx, len(latents) * len(bias), with_gradient)
        ctx.kept, values = {} if keep else None, []
        for part in _chunks(len(latents), len(bias), latents.device):
            logits = torch.addmm(bias, latents[part], embedding.T)
            of_target = logits.gather(-1, target[part].unsqueeze(-1)).squeeze(-1)
            largest, exponentials, total = _exponentials(logits)
            values.append(of_target - largest - total.log())
            if keep:
                ctx.kept[part.start] = exponentials, total
        return torch.cat(values)

    @staticmethod
    def backward(ctx, grad: Tensor):
        _refuse_second_backward(ctx)
        latents, embedding, bias, target = ctx.saved_tensors
        grad_latents = embedding[target] * grad.unsqueeze(-1)
        grad_embedding = torch.zeros_like(embedding)
        grad_embedding.index_add_(0, target, latents * grad.unsqueeze(-1))
        grad_bias = torch.zeros_like(bias).index_add_(0, target, grad)
        for part in _chunks(len(latents), len(bias), latents.device):
            if ctx.kept is None:
                logits = torch.addmm(bias, latents[part], embedding.T)
                _, exponentials, total = _exponentials(logits)
            else:
                exponentials, total = ctx.kept.pop(part.start)
            # Softmax is exponentials / total; the division is left to the narrow side.
            scale = grad[part] / total
            grad_latents[part] -= (exponentials @ embedding) * scale.unsqueeze(-1)
            scaled = latents[part] * scale.unsqueeze(-1)
            grad_embedding.addmm_(exponentials.T, scaled, alpha=-1)
            grad_bias.addmv_(exponentials.T, scale, alpha=-1)
        return grad_latents, grad_embedding, grad_bias, None, None


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit, exp(logits − largest) in their place, and its sum, by rows."""
    largest = logits.amax(-1)
    exponentials = logits.sub_(largest.unsqueeze(-1)).exp_()
    return largest, exponentials, exponentials.sum(-1)


def target_log_softmax(latents: Tensor, embedding: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """log softmax(W z + b) at ``target`` ``(R,)`` for each row z of ``latents`` ``(R, E)``."""
    return _TargetLogSoftmax.apply(latents, embedding, bias, target, torch.is_grad_enabled())


class _SigmoidMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, log_pi, embedding, bias, log_q0, with_gradient: bool) -> Tensor:
        ctx.save_for_backward(latents, log_pi, embedding, bias, log_q0)
        ctx.entries = log_pi.shape[1] * len(bias)
        keep = _keeps(ctx, len(log_q0) * ctx.entries, with_gradient)
        ctx.kept, values = {} if keep else None, []
        for part in _chunks(len(log_q0), ctx.entries, latents.device):
            value, *gradients = _expectation(
                latents[part], log_pi[part], embedding, bias, log_q0[part], keep
            )
            values.append(value)
            if keep:
                ctx.kept[part.start] = gradients
        return torch.cat(values)

    @staticmethod
    def backward(ctx, grad: Tensor):
        _refuse_second_backward(ctx)
        latents, log_pi, embedding, bias, log_q0 = ctx.saved_tensors
        grad_latents, grad_log_pi = torch.empty_like(latents), torch.empty_like(log_pi)
        grad_embedding, grad_bias = torch.zeros_like(embedding), torch.zeros_like(bias)
        for part in _chunks(len(log_q0), ctx.entries, latents.device):
            if ctx.kept is None:
                _, of_logits, of_log_pi = _expectation(
                    latents[part], log_pi[part], embedding, bias, log_q0[part], True
                )
            else:
                of_logits, of_log_pi = ctx.kept.pop(part.start)
            scale = grad[part, None, None]
            of_logits = of_logits.flatten(0, 1)
            grad_latents[part] = (of_logits @ embedding).view_as(latents[part]) * scale
            scaled = (latents[part] * scale).flatten(0, 1)
            grad_embedding.addmm_(of_logits.T, scaled)
            grad_bias.addmv_(of_logits.T, scale.expand(*latents[part].shape[:2], 1).flatten())
            grad_log_pi[part] = of_log_pi * grad[part, None]
        return grad_latents, grad_log_pi, grad_embedding, grad_bias, None, None


def _expectation(latents, log_pi, embedding, bias, log_q0, with_gradients: bool):
    """−Σ_w q_0 log r ``(n,)`` and its gradients by logits ``(n, K, V)`` and by log π ``(n, K)``."""
    logits = torch.addmm(bias, latents.flatten(0, 1), embedding.T).view(*log_pi.shape, -1)
    q0, pi = log_q0.exp(), log_pi.exp()
    sigma = logits.sigmoid()
    r = torch.bmm(pi.unsqueeze(1), sigma).squeeze(1)
    if r.min() > 1e-30:
        log_r, responsibility = r.log(), None
    else:  # too small for the plain sum, so in log space
        log_parts = F.logsigmoid(logits) + log_pi.unsqueeze(-1)
        log_r = log_parts.logsumexp(1)
        responsibility = (log_parts - log_r.unsqueeze(1)).exp_()
    value = -torch.linalg.vecdot(q0, log_r)
    if not with_gradients:
        return value, None, None
    if responsibility is None:
        weights = sigma * (q0 / r).unsqueeze(1)
        of_log_pi = -pi * weights.sum(-1)
        weights.mul_(pi.unsqueeze(-1))
    else:
        weights = responsibility * q0.unsqueeze(1)
        of_log_pi = -weights.sum(-1)
    # The derivative of log σ is 1 − σ.
    return value, torch.addcmul(weights.neg(), weights, sigma), of_log_pi


def sigmoid_mixture_expectation(
    latents: Tensor, log_pi: Tensor, embedding: Tensor, bias: Tensor, log_q0: Tensor
) -> Tensor:
    """−Σ_w q_0(w) log r(w) ``(N,)``, with r = Σ_k π_k σ(W z_k + b).

    ``latents`` ``(N, K, E)``, ``log_pi`` ``(N, K)``, ``log_q0`` ``(N, V)``, which gets no gradient.
    """
    return _SigmoidMixture.apply(
        latents, log_pi, embedding, bias, log_q0.detach(), torch.is_grad_enabled()
    )
