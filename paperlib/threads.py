"""Work on blocks of an array in threads: NumPy computes without Python's lock."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def in_blocks(fill: Callable[[slice], None], size: int, block: int) -> None:
    """Call ``fill`` for slices of ``block`` rows of ``size``, in as many threads as cores, or 8."""
    slices = [slice(start, min(start + block, size)) for start in range(0, size, block)]
    with ThreadPoolExecutor(max_workers=min(8, cores())) as pool:
        list(pool.map(fill, slices))


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
