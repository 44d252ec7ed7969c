"""What a GPU does with a chunk of logits, each in one kernel of Triton's: nothing of their size is
read or written more often than it has to be.

They stand for the lines in :mod:`paperlib.models.fused` that a CPU runs. All is in log space, in
the dtype of the logits, and without a sum whose order could change from one run to the next.

Shapes: R rows or n tokens, K experts, V words.
"""

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Words that a program works on at once."""


@triton.jit
def _largest_and_total(logits, largest, totals, words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * words
    # Of each lane, which has every BLOCK-th word; -∞ is the largest of none.
    of_lanes = tl.full((BLOCK,), float("-inf"), logits.dtype.element_ty)
    sums = tl.zeros((BLOCK,), logits.dtype.element_ty)
    for start in range(0, words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < words, other=float("-inf"))
        new = tl.maximum(of_lanes, x)
        shift = tl.where(new == float("-inf"), 0.0, new)
        sums = sums * tl.exp(of_lanes - shift) + tl.exp(x - shift)
        of_lanes = new
    of_all = tl.max(of_lanes, 0)
    tl.store(largest + row, of_all)
    tl.store(totals + row, tl.sum(sums * tl.exp(of_lanes - of_all), 0))


@triton.jit
def _exponentials(logits, largest, words, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * words + at, mask=at < words, other=0.0)
    tl.store(logits + row * words + at, tl.exp(x - tl.load(largest + row)), mask=at < words)


@triton.jit
def _mixture(logits, largest, log_weights, out, experts, words, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits += token * experts * words
    highest = tl.full((BLOCK,), float("-inf"), logits.dtype.element_ty)
    total = tl.zeros((BLOCK,), logits.dtype.element_ty)
    for k in range(experts):
        x = tl.load(logits + k * words + at, mask=at < words, other=0.0)
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
    logits, log_pi, log_q0, values, of_log_pi, experts, words, GRADIENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    at = block * BLOCK + tl.arange(0, BLOCK)
    is_word = at < words
    logits += token * experts * words
    log_pi += token * experts
    highest = tl.full((BLOCK,), float("-inf"), logits.dtype.element_ty)
    total = tl.zeros((BLOCK,), logits.dtype.element_ty)
    for k in range(experts):
        x = tl.load(logits + k * words + at, mask=is_word, other=0.0)
        x = _log_sigmoid(x) + tl.load(log_pi + k)
        new = tl.maximum(highest, x)
        total = total * tl.exp(highest - new) + tl.exp(x - new)
        highest = new
    log_r = highest + tl.log(total)
    q0 = tl.exp(tl.load(log_q0 + token * words + at, mask=is_word, other=float("-inf")))
    tl.store(values + token * blocks + block, tl.sum(-q0 * log_r, 0))
    if GRADIENTS:
        of_log_pi += (token * blocks + block) * experts
        for k in range(experts):
            x = tl.load(logits + k * words + at, mask=is_word, other=0.0)
            responsibility = tl.exp(_log_sigmoid(x) + tl.load(log_pi + k) - log_r)
            weighted = -q0 * responsibility
            tl.store(of_log_pi + k, tl.sum(weighted, 0))
            of_logit = weighted * tl.exp(_log_sigmoid(-x))
            tl.store(logits + k * words + at, of_logit, mask=is_word)


def largest_and_total(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Largest of the logits ``(R, V)``, and Σ_w exp(logits − largest), ``(R,)`` each."""
    largest, totals = logits.new_empty(2, len(logits))
    _largest_and_total[(len(logits),)](logits, largest, totals, logits.shape[1], BLOCK=BLOCK)
    return largest, totals


def exponentials_(logits: Tensor, largest: Tensor) -> Tensor:
    """exp(logits − largest), ``(R, V)`` and ``(R,)``, in the place of the logits."""
    rows, words = logits.shape
    _exponentials[(rows, triton.cdiv(words, BLOCK))](logits, largest, words, BLOCK=BLOCK)
    return logits


def mixture(logits: Tensor, log_pi: Tensor) -> Tensor:
    """log Σ_k π_k softmax(logits_k) ``(n, V)`` of ``(n, K, V)`` and ``(n, K)``."""
    tokens, experts, words = logits.shape
    largest, totals = largest_and_total(logits.flatten(0, 1))
    log_weights = log_pi - totals.view(log_pi.shape).log()
    out = logits.new_empty(tokens, words)
    grid = tokens, triton.cdiv(words, BLOCK)
    _mixture[grid](logits, largest, log_weights, out, experts, words, BLOCK=BLOCK)
    return out


def sigmoid_mixture(
    logits: Tensor, log_pi: Tensor, log_q0: Tensor, with_gradients: bool
) -> tuple[Tensor, Tensor | None]:
    """−Σ_w q_0 log Σ_k π_k σ(logits_k) ``(n,)``, and its gradient by log π ``(n, K)``.

    The gradient by ``logits`` ``(n, K, V)`` is put in their place. ``log_pi`` ``(n, K)``,
    ``log_q0`` ``(n, V)``.
    """
    tokens, experts, words = logits.shape
    blocks = triton.cdiv(words, BLOCK)
    values = logits.new_empty(tokens, blocks)
    of_log_pi = logits.new_empty(tokens, blocks, experts) if with_gradients else values
    _sigmoid_mixture[(tokens, blocks)](
        logits, log_pi.contiguous(), log_q0.contiguous(), values, of_log_pi, experts, words,
        GRADIENTS=with_gradients, BLOCK=BLOCK,
    )  # fmt: skip
    return values.sum(-1), of_log_pi.sum(1) if with_gradients else None
