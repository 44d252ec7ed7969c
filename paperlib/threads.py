"""Work on blocks of an array in threads: NumPy computes without Python's lock."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Environment variables that say how many threads compute. PyTorch goes by MKL's where it has it,
and Snakemake sets them all."""


def in_blocks(fill: Callable[[slice], None], size: int, block: int) -> None:
    """Call ``fill`` for slices of ``block`` rows of ``size``, in as many threads as are allowed, at
    most 8."""
    slices = [slice(start, min(start + block, size)) for start in range(0, size, block)]
    with ThreadPoolExecutor(max_workers=min(8, allowed())) as pool:
        list(pool.map(fill, slices))


def allowed() -> int:
    """Threads that this process may compute in: those of ``OMP_NUM_THREADS``, or else the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(given)) if given.isdecimal() else cores()


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def settings(number: int) -> dict[str, str]:
    """Of the environment of a process that computes in so many threads."""
    return dict.fromkeys(SETTINGS, str(number))
