"""Dropout with explicit randomness: every function draws from the generator it is given.

``generator=None`` or rate 0 means no dropout. What stays is scaled by 1/(1 − rate).
"""

import torch
from torch import Tensor


def mask(shape: tuple[int, ...], rate: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Zeros with probability ``rate``, else 1/(1 − rate), in the dtype and on the device of
    ``like``."""
    kept = torch.empty(shape, dtype=like.dtype, device=like.device)
    return kept.bernoulli_(1 - rate, generator=generator).div_(1 - rate)


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
