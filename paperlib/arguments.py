"""Checks of arguments: what is wrong is said in one sentence, as a ``ValueError``."""

from numbers import Integral

import numpy as np


def require_whole(name: str, value, lowest: int, highest: int | None = None) -> None:
    """Refuse a ``value`` that is not a whole number within the limits."""
    fits = isinstance(value, Integral) and value >= lowest
    if not fits or (highest is not None and value > highest):
        limits = f"of at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ValueError(f"{name} must be a whole number {limits}, not {value!r}")


def integers(name: str, values, lowest: int, highest: int) -> np.ndarray:
    """``values`` as int64, refused where one is no integer or out of the limits."""
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, not {array.dtype}")
    if np.any(bad := (array < lowest) | (array > highest)):
        raise ValueError(f"{name} holds {array[bad][0]}, which is not from {lowest} to {highest}")
    return array.astype(np.int64)


def generator(seed) -> np.random.Generator:
    """``numpy.random.default_rng`` of a seed that must be given."""
    if seed is None:
        raise ValueError("seed must not be None: results must be repeatable")
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed {seed!r} is not valid: {error}") from None
