"""Dropout with explicit randomness: every function draws from the generator it is given.

``generator=None`` or rate 0 means no dropout. What stays is scaled by 1/(1 − rate).
"""

import math

import torch
from torch import Tensor


def mask(shape: tuple[int, ...], rate: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Zeros with probability ``rate``, else 1/(1 − rate), in the dtype and on the device of
    ``like``.

    A draw of 64 bits decides on four units, some times faster than a Bernoulli draw for each, so
    ``rate`` is rounded to a multiple of 2⁻¹⁶.
    """
    units = math.prod(shape)
    draws = torch.empty(-(-units // 4), dtype=torch.int64, device=like.device)
    bits = draws.random_(-(2**63), None, generator=generator).view(torch.int16)[:units].view(shape)
    dropped = min(round(rate * 2**16), 2**16 - 1)
    return (bits >= dropped - 2**15).to(like.dtype).div_(1 - rate)


def locked(values: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Drop units of ``(T, B, H)`` for all time steps alike (variational dropout)."""
    if generator is None or rate == 0:
        return values
    return values * mask((1, *values.shape[1:]), rate, generator, values)


def words(values: Tensor, ids: Tensor, n_words: int, rate: float, generator) -> Tensor:
    """Drop words of embedded text ``(T, B, E)`` wherever in ``ids`` ``(T, B)`` they occur."""
    if generator is None or rate == 0:
        return values
    return values * mask((n_words, 1), rate, generator, values)[ids]


def weights(matrix: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """A copy of a weight matrix with single weights dropped; gradients reach ``matrix``."""
    if generator is None or rate == 0:
        return matrix
    return matrix * mask(tuple(matrix.shape), rate, generator, matrix)
