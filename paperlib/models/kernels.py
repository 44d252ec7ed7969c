"""What a GPU does with a chunk of logits, each in one kernel of Triton's: nothing of their size is
read or written more often than it has to be.

They stand for the lines in :mod:`paperlib.models.fused` that a CPU runs. All is in log space, in
the dtype of the logits, and without a sum whose order could change from one run to the next. Logits
come without the bias ``(V,)``, which is added as they are read, for then no pass is spent on it.

Shapes: R rows or n tokens, K experts, V words, W ≥ V logits in a row: those after the V-th fill it
up, are not read, and have a gradient of zero.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Words that a program works on at once."""


@triton.jit
def _largest_and_total(logits, bias, largest, totals, words, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    # Of each lane, which has every BLOCK-th word; -∞ is the largest of none.
    of_lanes = tl.full((BLOCK,), float("-inf"), logits.dtype.element_ty)
    sums = tl.zeros((BLOCK,), logits.dtype.element_ty)
    for start in range(0, words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < words, other=float("-inf"))
        x += tl.load(bias + at, mask=at < words, other=0.0)
        new = tl.maximum(of_lanes, x)
        shift = tl.where(new == float("-inf"), 0.0, new)
        sums = sums * tl.exp(of_lanes - shift) + tl.exp(x - shift)
        of_lanes = new
    of_all = tl.max(of_lanes, 0)
    tl.store(largest + row, of_all)
    tl.store(totals + row, tl.sum(sums * tl.exp(of_lanes - of_all), 0))


@triton.jit
def _exponentials(logits, bias, largest, out, words, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * width + at, mask=at < words, other=float("-inf"))
    x += tl.load(bias + at, mask=at < words, other=0.0)
    result = tl.exp(x - tl.load(largest + row)).to(out.dtype.element_ty)
    tl.store(out + row * width + at, result, mask=at < width)


@triton.jit
def _mixture(logits, bias, largest, log_weights, out, experts, words, width, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits += token * experts * width
    of_bias = tl.load(bias + at, mask=at < words, other=0.0)
    highest = tl.full((BLOCK,), float("-inf"), logits.dtype.element_ty)
    total = tl.zeros((BLOCK,), logits.dtype.element_ty)
    for k in range(experts):
        x = tl.load(logits + k * width + at, mask=at < words, other=0.0) + of_bias
        x = x - tl.load(largest + token * experts + k) + tl.load(log_weights + token * experts + k)
        new = tl.maximum(highest, x)
        total = total * tl.exp(highest - new) + tl.exp(x - new)
        highest = new
    tl.store(out + token * words + at, highest + tl.log(total), mask=at < words)


@triton.jit
def _log_sigmoid(x):
    return tl.minimum(x, 0.0) - tl.log(1.0 + tl.exp(-tl.abs(x)))


@triton.jit
def _sigmoid_mixture(
    logits, bias, log_pi, log_q0, values, of_logits, of_log_pi, experts, words, width,
    GRADIENTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    is_word = at < words
    logits += token * experts * width
    of_bias = tl.load(bias + at, mask=is_word, other=0.0)
    log_pi += token * experts
    highest = tl.full((BLOCK,), float("-inf"), logits.dtype.element_ty)
    total = tl.zeros((BLOCK,), logits.dtype.element_ty)
    for k in range(experts):
        x = tl.load(logits + k * width + at, mask=is_word, other=0.0) + of_bias
        x = _log_sigmoid(x) + tl.load(log_pi + k)
        new = tl.maximum(highest, x)
        total = total * tl.exp(highest - new) + tl.exp(x - new)
        highest = new
    log_r = highest + tl.log(total)
    q0 = tl.exp(tl.load(log_q0 + token * words + at, mask=is_word, other=float("-inf")))
    tl.store(values + token * blocks + block, tl.sum(-q0 * log_r, 0))
    if GRADIENTS:
        of_logits += token * experts * width
        of_log_pi += (token * blocks + block) * experts
        for k in range(experts):
            x = tl.load(logits + k * width + at, mask=is_word, other=0.0) + of_bias
            responsibility = tl.exp(_log_sigmoid(x) + tl.load(log_pi + k) - log_r)
            weighted = -q0 * responsibility
            tl.store(of_log_pi + k, tl.sum(weighted, 0))
            of_logit = (weighted * tl.exp(_log_sigmoid(-x))).to(of_logits.dtype.element_ty)
            tl.store(of_logits + k * width + at, of_logit, mask=at < width)


def largest_and_total(logits: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Largest of the logits ``(R, W)``, and Σ_w exp(logits − largest), ``(R,)`` each."""
    rows, width = logits.shape
    largest, totals = logits.new_empty(2, rows)
    _largest_and_total[(rows,)](
        logits, bias.contiguous(), largest, totals, len(bias), width, BLOCK=BLOCK
    )
    return largest, totals


def exponentials(logits: Tensor, bias: Tensor, largest: Tensor, dtype: torch.dtype) -> Tensor:
    """exp(logits − largest), ``(R, W)`` and ``(R,)``.

    In the place of the logits where they have this ``dtype``.
    """
    rows, width = logits.shape
    out = _place(logits, dtype)
    _exponentials[(rows, triton.cdiv(width, BLOCK))](
        logits, bias.contiguous(), largest, out, len(bias), width, BLOCK=BLOCK
    )
    return out


def mixture(logits: Tensor, bias: Tensor, log_pi: Tensor) -> Tensor:
    """log Σ_k π_k softmax(logits_k) ``(n, V)`` of ``(n, K, W)`` and ``(n, K)``."""
    tokens, experts, width = logits.shape
    largest, totals = largest_and_total(logits.flatten(0, 1), bias)
    log_weights = log_pi - totals.view(log_pi.shape).log()
    out = logits.new_empty(tokens, len(bias))
    _mixture[(tokens, triton.cdiv(len(bias), BLOCK))](
        logits, bias.contiguous(), largest, log_weights, out, experts, len(bias), width,
        BLOCK=BLOCK,
    )  # fmt: skip
    return out


def sigmoid_mixture(
    logits: Tensor, bias: Tensor, log_pi: Tensor, log_q0: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """−Σ_w q_0 log Σ_k π_k σ(logits_k) ``(n,)``, and its gradients by logits and log π.

    ``logits`` ``(n, K, W)``, ``log_pi`` ``(n, K)``, ``log_q0`` ``(n, V)``. The gradient by logits
    has the given ``dtype`` and is put in their place where that is theirs. Without a ``dtype``
    there are no gradients.
    """
    tokens, experts, width = logits.shape
    blocks, with_gradients = triton.cdiv(width, BLOCK), dtype is not None
    values = logits.new_empty(tokens, blocks)
    of_logits = _place(logits, dtype) if with_gradients else logits
    of_log_pi = logits.new_empty(tokens, blocks, experts) if with_gradients else values
    _sigmoid_mixture[(tokens, blocks)](
        logits, bias.contiguous(), log_pi.contiguous(), log_q0.contiguous(), values, of_logits,
        of_log_pi, experts, len(bias), width, GRADIENTS=with_gradients, BLOCK=BLOCK,
    )  # fmt: skip
    if not with_gradients:
        return values.sum(-1), None, None
    return values.sum(-1), of_logits, of_log_pi.sum(1)


def _place(logits: Tensor, dtype: torch.dtype) -> Tensor:
    return logits if logits.dtype == dtype else torch.empty_like(logits, dtype=dtype)
