"""The two expensive sums over the vocabulary, value and gradient together, in chunks of rows.

Both start from latent vectors z, the tied embedding W ``(V, E)`` and the output bias b ``(V,)``.
On a CPU the vocabulary-sized intermediate results of the first chunks are kept for the gradient,
up to ``KEEP``; all others are computed again. On a GPU kernels of :mod:`paperlib.models.kernels`
take the place of several passes over a chunk; they also add b, so that the product there is W z
alone, of bfloat16 where products are rounded. Equal, up to rounding, to what
``tests/test_fused.py`` writes out in a line or two each.

Shapes: R or N rows of latents, K experts, V words, E embedding units.
"""

import functools
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib import hardware
from paperlib.models.products import multiply, rounds

CHUNK = 1 << 21
"""Logits that a CPU's thread works on at once: few enough for the cache, enough for fast
products."""

GPU_CHUNK = 1 << 24
"""Logits that a GPU works on at once, or an eighth of all where that is more."""

LEAST = 128
"""Rows of latents that a chunk has at least: with each, all of W passes through the cache."""

KEEP = 1 << 28
"""Bytes of intermediate results that a CPU keeps for the gradient. A GPU is as fast without."""

ALIGNED = 16
"""What a row of a product has a multiple of: others take a CPU up to twice as long, and bfloat16
loses a GPU's fast loads."""


def _chunks(rows: int, words: int, device: torch.device, experts: int = 1) -> Iterator[slice]:
    if device.type == "cuda":
        logits = max(GPU_CHUNK, rows * experts * words // 8)
    else:  # threads share a chunk
        logits = CHUNK * torch.get_num_threads()
    size = max(logits // (experts * words), -(-LEAST // experts))
    for start in range(0, rows, size):
        yield slice(start, min(rows, start + size))


def _kept_dtype(latents: Tensor) -> torch.dtype:
    """What is only multiplied later can be kept as a CPU's rounded product would take it."""
    return torch.bfloat16 if not latents.is_cuda and rounds(latents) else latents.dtype


def _factor(vectors: Tensor, multiple: int = 1) -> Tensor:
    """``vectors`` ``(..., E)`` as products of a chunk take them.

    For the kernels of a GPU that rounds they are cast to bfloat16 and filled up with zeros to
    ``ALIGNED`` units and to a ``multiple`` of rows.
    """
    if not (_kernels(vectors) and rounds(vectors)):
        return vectors
    rows, units = vectors.shape[-2:]
    return F.pad(vectors.bfloat16(), (0, -units % ALIGNED, 0, -rows % multiple))


def _of_gradients(embedding: Tensor) -> Tensor:
    """A factor of logits as gradients' products take it; what a CPU rounds, all chunks share."""
    return embedding.to(_kept_dtype(embedding))


def _kept_rows(ctx, entries: int, latents: Tensor, with_gradient: bool) -> int:
    """How many rows of ``entries`` intermediate results are kept."""
    # Without gradients autograd still says that a parameter needs one, and hides in ``forward``
    # whether gradients are on: ``with_gradient`` is from outside.
    if not with_gradient or not any(ctx.needs_input_grad) or latents.is_cuda:
        return 0
    return KEEP // (entries * _kept_dtype(latents).itemsize)


def _refuse_second_backward(ctx) -> None:
    # Gradients are on here only for ``create_graph``. PyTorch's once_differentiable would let that
    # pass where the gradient from outside is a constant, and the second derivative would be zero.
    if torch.is_grad_enabled() or ctx.kept is None:
        raise RuntimeError("a sum over the vocabulary can be differentiated only once")


class _OutputGradient:
    """Gradients by embedding ``(V, E)`` and bias ``(V,)``, summed up in one matrix.

    Its rows are filled up to a multiple of ``ALIGNED`` units.
    """

    def __init__(self, embedding: Tensor):
        words, self.units = embedding.shape
        self.sum = embedding.new_zeros(words, -(-(self.units + 1) // ALIGNED) * ALIGNED)

    def rows(self, latents: Tensor, scale: Tensor) -> Tensor:
        """``latents`` ``(R, E)`` times ``scale`` ``(R, 1)``, the scale itself, and zeros."""
        rows = latents.new_zeros(len(latents), self.sum.shape[1])
        torch.mul(latents, scale, out=rows[:, : self.units])
        rows[:, self.units] = scale.squeeze(-1)
        return rows

    def add(self, words: Tensor, rows: Tensor) -> None:
        """Add a row to the gradient of each of ``words`` ``(R,)``."""
        if rows.is_cuda:  # where index_add_ would sum up in another order each time
            self.sum.index_put_((words,), rows, accumulate=True)
        else:
            self.sum.index_add_(0, words, rows)

    def add_product(self, by_logits: Tensor, rows: Tensor, sign: int = 1) -> None:
        """Add or subtract ``by_logits`` ``(R, V)``, which a factor may have filled up, by rows."""
        if by_logits.dtype == self.sum.dtype:
            self.sum.addmm_(by_logits.T, rows, alpha=sign)
        else:
            product = multiply(by_logits.T, rows)
            self.sum.add_(product[: len(self.sum)], alpha=sign)

    def parts(self) -> tuple[Tensor, Tensor]:
        """By embedding, and by bias."""
        return self.sum[:, : self.units], self.sum[:, self.units]


class _Logits:
    """W z + b of one chunk after the other, in one buffer unless in another that is given.

    For kernels it is W z, in memory of its own: a GPU's allocator is quick to find it again.
    """

    def __init__(self, latents: Tensor, embedding: Tensor, bias: Tensor, chunks: list[slice]):
        self.latents, self.embedding = _factor(latents), _factor(embedding, ALIGNED)
        self.bias = bias
        self.shape = max(part.stop - part.start for part in chunks), len(bias)
        self.buffer = None

    def __call__(self, part: slice, out: Tensor | None = None) -> Tensor:
        if _kernels(self.latents):
            return multiply(self.latents[part], self.embedding.T)
        if out is None:
            if self.buffer is None:
                self.buffer = self.latents.new_empty(self.shape)
            out = self.buffer[: part.stop - part.start]
        return torch.addmm(self.bias, self.latents[part], self.embedding.T, out=out)


class _TargetLogSoftmax(torch.autograd.Function):
    """Without a ``target``, the normaliser alone: as if the target's logit were zero."""

    @staticmethod
    def forward(ctx, latents, embedding, bias, target, with_gradient: bool) -> Tensor:
        ctx.save_for_backward(latents, embedding, bias, target)
        keep = _kept_rows(ctx, len(bias), latents, with_gradient)
        chunks = list(_chunks(len(latents), len(bias), latents.device))
        keep = max((part.stop for part in chunks if part.stop <= keep), default=0)
        # One buffer for all that is kept: many of them leave a heap in pieces.
        kept = latents.new_empty(keep, len(bias), dtype=_kept_dtype(latents))
        in_place = kept.dtype == latents.dtype
        logits_of = _Logits(latents, embedding, bias, chunks)
        largest, totals = latents.new_empty(2, len(latents))
        values, own = [], _kernels(latents)
        for part in chunks:
            is_kept = part.stop <= keep
            logits = logits_of(part, kept[part] if is_kept and in_place else None)
            of_target = 0
            if target is not None:
                of_target = logits.gather(-1, target[part].unsqueeze(-1)).squeeze(-1)
            if own:
                largest[part], totals[part] = own.largest_and_total(logits, bias)
                if target is not None:
                    of_target += bias[target[part]]
            else:
                largest[part], exponentials, totals[part] = _exponentials(logits)
            values.append(of_target - largest[part] - totals[part].log())
            if is_kept and not in_place:
                kept[part] = exponentials
        ctx.kept, ctx.largest, ctx.totals = kept, largest, totals
        return torch.cat(values)

    @staticmethod
    def backward(ctx, grad: Tensor):
        _refuse_second_backward(ctx)
        latents, embedding, bias, target = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        grad_latents = torch.zeros_like(latents) if target is None else embedding[target] * grad
        output = _OutputGradient(embedding)
        if target is not None:
            output.add(target, output.rows(latents, grad))
        chunks = list(_chunks(len(latents), len(bias), latents.device))
        logits_of, own = _Logits(latents, embedding, bias, chunks), _kernels(latents)
        factor = _of_gradients(logits_of.embedding)
        for part in chunks:
            largest = ctx.largest[part]
            if part.stop <= len(ctx.kept):
                exponentials = ctx.kept[part]
            elif own:
                exponentials = own.exponentials(logits_of(part), bias, largest, factor.dtype)
            else:
                exponentials = _exponentials_(logits_of(part), largest).to(factor.dtype)
            # Softmax is exponentials / total; the division is left to the narrow side.
            scale = grad[part] / ctx.totals[part].unsqueeze(-1)
            product = multiply(exponentials, factor)
            grad_latents[part] -= product[:, : output.units] * scale
            output.add_product(exponentials, output.rows(latents[part], scale), sign=-1)
        if len(ctx.kept):
            ctx.kept = None
        return grad_latents, *output.parts(), None, None


def has_kernels(device: torch.device) -> bool:
    """Whether the sums run by kernels there; those never wait for the GPU, the other way does."""
    return device.type == "cuda" and _gpu_kernels() is not None


def _kernels(latents: Tensor):
    """The module of kernels where the latents are on a GPU that can run them, else None."""
    return _gpu_kernels() if latents.is_cuda else None


@functools.cache
def _gpu_kernels():
    if find_spec("triton") is None:  # it comes with PyTorch for CUDA, but not on every system
        return None
    from paperlib.models import kernels

    try:
        kernels.largest_and_total(*torch.zeros(2, 1, 1, device="cuda"))
    except Exception as error:  # of Triton, a compiler or a linker
        reason = str(error).strip().partition("\n")[0]
        warnings.warn(
            "Triton cannot compile here, so sums over the vocabulary take more time and memory; it "
            f"needs a C compiler and Python's headers ({type(error).__name__}: {reason})",
            stacklevel=2,
        )
        return None
    return kernels


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit, exp(logits − largest) in their place, and its sum, over the last axis."""
    largest = logits.amax(-1)
    exponentials = _exponentials_(logits, largest)
    return largest, exponentials, exponentials.sum(-1)


def _exponentials_(logits: Tensor, largest: Tensor) -> Tensor:
    """exp(logits − largest), in the place of the logits."""
    return logits.sub_(largest.unsqueeze(-1)).exp_()


def target_log_softmax(latents: Tensor, embedding: Tensor, bias: Tensor, target: Tensor) -> Tensor:
    """log softmax(W z + b) at ``target`` ``(R,)`` for each row z of ``latents`` ``(R, E)``."""
    return _TargetLogSoftmax.apply(latents, embedding, bias, target, torch.is_grad_enabled())


def log_normaliser(latents: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
    """log Σ_w exp(W_w · z + b_w) ``(R,)`` for each row z of ``latents`` ``(R, E)``."""
    return -_TargetLogSoftmax.apply(latents, embedding, bias, None, torch.is_grad_enabled())


def _logits(latents: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
    """W z + b, for kernels W z, ``(n, K, V)`` for ``latents`` ``(n, K, E)``."""
    rows = latents.flatten(0, 1)
    if _kernels(latents):
        logits = multiply(rows, embedding.T)
    else:
        logits = torch.addmm(bias, rows, embedding.T)
    return logits.view(*latents.shape[:2], -1)


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Σ_k weights_k values_k ``(n, V)``, never rounded, which here would be slower too."""
    with hardware.rounded_products(False):
        return torch.bmm(weights.unsqueeze(1), values).squeeze(1)


def mixture_log_softmax(latents: Tensor, log_pi: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
    """log Σ_k π_k softmax(W z_k + b) of all words, ``(N, V)``, without gradient.

    ``latents`` ``(N, K, E)``, ``log_pi`` ``(N, K)``.
    """
    log_q, own = [], _kernels(latents)
    latents, embedding = _factor(latents), _factor(embedding, ALIGNED)
    for part in _chunks(len(log_pi), len(bias), latents.device, log_pi.shape[1]):
        logits = _logits(latents[part], embedding, bias)
        if own:
            log_q.append(own.mixture(logits, bias, log_pi[part]))
            continue
        largest, exponentials, total = _exponentials(logits)
        q = _weighted_sum(log_pi[part].exp() / total, exponentials)
        if q.min() > 1e-30:  # a GPU without kernels is waited for here, once a chunk
            log_q.append(q.log_())
        else:  # a word is too rare for the plain sum, so in log space
            log_parts = _logits(latents[part], embedding, bias)
            log_parts -= largest.unsqueeze(-1)
            log_parts += (log_pi[part] - total.log()).unsqueeze(-1)
            log_q.append(log_parts.logsumexp(1))
    return torch.cat(log_q)


class _SigmoidMixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx, latents, log_pi, embedding, bias, log_q0, with_gradient: bool) -> Tensor:
        ctx.save_for_backward(latents, log_pi, embedding, bias, log_q0)
        entries = log_pi.shape[1] * len(bias)
        keep = _kept_rows(ctx, entries, latents, with_gradient)
        latents, embedding = _factor(latents), _factor(embedding, ALIGNED)
        ctx.kept, values = {}, []
        for part in _chunks(len(log_q0), len(bias), latents.device, log_pi.shape[1]):
            value, *gradients = _expectation(
                latents[part], log_pi[part], embedding, bias, log_q0[part], part.stop <= keep
            )
            values.append(value)
            if part.stop <= keep:
                ctx.kept[part.start] = gradients
        return torch.cat(values)

    @staticmethod
    def backward(ctx, grad: Tensor):
        _refuse_second_backward(ctx)
        latents, log_pi, embedding, bias, log_q0 = ctx.saved_tensors
        grad_latents, grad_log_pi = torch.empty_like(latents), torch.empty_like(log_pi)
        output = _OutputGradient(embedding)
        rounded, embedding = _factor(latents), _factor(embedding, ALIGNED)
        multiplied = _of_gradients(embedding)
        kept = ctx.kept
        if kept:
            ctx.kept = None
        for part in _chunks(len(log_q0), len(bias), latents.device, log_pi.shape[1]):
            if part.start in kept:
                of_logits, factor, of_log_pi = kept.pop(part.start)
            else:
                _, of_logits, factor, of_log_pi = _expectation(
                    rounded[part], log_pi[part], embedding, bias, log_q0[part], True
                )
            of_logits = of_logits.flatten(0, 1)
            scale = (factor * grad[part, None]).unsqueeze(-1)
            product = multiply(of_logits, multiplied)[:, : output.units]
            grad_latents[part] = product.view_as(latents[part]) * scale
            rows = output.rows(latents[part].flatten(0, 1), scale.flatten(0, 1))
            output.add_product(of_logits, rows)
            grad_log_pi[part] = of_log_pi * grad[part, None]
        return grad_latents, grad_log_pi, *output.parts(), None, None


def _expectation(latents, log_pi, embedding, bias, log_q0, with_gradients: bool):
    """−Σ_w q_0 log r ``(n,)`` and its gradients by logits ``(n, K, V)`` and by log π ``(n, K)``.

    Between the two comes a factor ``(n, K)`` that the former still lacks.
    """
    if own := _kernels(latents):
        logits = _logits(latents, embedding, bias)
        dtype = latents.dtype if with_gradients else None
        value, of_logits, of_log_pi = own.sigmoid_mixture(logits, bias, log_pi, log_q0, dtype)
        return value, of_logits, torch.ones_like(log_pi), of_log_pi
    q0, pi = log_q0.exp(), log_pi.exp()
    sigma = _logits(latents, embedding, bias).sigmoid_()
    r = _weighted_sum(pi, sigma)
    if r.min() > 1e-30:
        log_r, responsibility = r.log(), None
    else:  # too small for the plain sum, so in log space
        log_parts = F.logsigmoid(_logits(latents, embedding, bias)) + log_pi.unsqueeze(-1)
        log_r = log_parts.logsumexp(1)
        responsibility = (log_parts - log_r.unsqueeze(1)).exp_()
    value = -torch.linalg.vecdot(q0, log_r)
    if not with_gradients:
        return value, None, None, None
    kept = _kept_dtype(latents)
    # The derivative of σ is σ (1 − σ), that of log σ is 1 − σ.
    if responsibility is None:
        ratio = q0.div_(r).neg_()
        with hardware.rounded_products(False):
            of_log_pi = torch.bmm(sigma, ratio.unsqueeze(-1)).squeeze(-1).mul_(pi)
        # In place: buffers of this size fill a CPU's cache.
        ratio = ratio.unsqueeze(1).expand_as(sigma)
        torch.ops.aten.sigmoid_backward.grad_input(ratio, sigma, grad_input=sigma)
        return value, sigma.to(kept), pi, of_log_pi
    weights = responsibility * q0.neg_().unsqueeze(1)
    of_logits = weights * (1 - sigma)
    return value, of_logits.to(kept), torch.ones_like(pi), weights.sum(-1)


def sigmoid_mixture_expectation(
    latents: Tensor, log_pi: Tensor, embedding: Tensor, bias: Tensor, log_q0: Tensor
) -> Tensor:
    """−Σ_w q_0(w) log r(w) ``(N,)``, with r = Σ_k π_k σ(W z_k + b).

    ``latents`` ``(N, K, E)``, ``log_pi`` ``(N, K)``, ``log_q0`` ``(N, V)``, which gets no gradient.
    """
    return _SigmoidMixture.apply(
        latents, log_pi, embedding, bias, log_q0.detach(), torch.is_grad_enabled()
    )
