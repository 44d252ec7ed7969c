"""What all benchmarks share: alternating repetitions, peak memory, and the floor of the machine.

A *case* is one piece of work in several *ways*; the first is the library's, the others are what
people would use instead. Repetitions of all ways alternate, so that a busy moment of the machine
hits each alike. Peak memory is taken in a fresh process (on a GPU: by its allocator).
"""

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from paperlib import hardware


@dataclass(frozen=True)
class Work:
    """The least that a case has to do: operations of its matrix products, and bytes to move."""

    operations: float = 0.0
    moved: float = 0.0


@dataclass(frozen=True)
class Case:
    """One piece of work: its ways by name, the library's first."""

    ways: dict[str, Callable[[], object]]
    work: Work = Work()
    mixed: bool = False
    """Whether the library's way rounds matrix products, which changes the floor."""


@dataclass(frozen=True)
class Benchmark:
    """How to build a case, so that a fresh process can build it too."""

    subject: str
    shape: str
    build: Callable[..., Case]
    arguments: dict = field(default_factory=dict)
    repeats: int = 5

    def case(self) -> Case:
        """The case, with its inputs in memory."""
        return self.build(**self.arguments)


@dataclass(frozen=True)
class Machine:
    """Measured rates: operations a second in float32 and in mixed precision, and bytes a second."""

    float32: float
    mixed: float
    bandwidth: float

    def floor(self, case: Case) -> float:
        """Seconds that the case takes at the least."""
        rate = self.mixed if case.mixed else self.float32
        return max(case.work.operations / rate, case.work.moved / self.bandwidth)


def machine(size: int = 3000, numbers: int = 1 << 26) -> Machine:
    """Measure the product of two square matrices and the copy of a large array."""
    device = hardware.device()
    left, right = (torch.randn(size, size, device=device) for _ in range(2))
    rates = []
    for rounded in (False, True):
        with hardware.rounded_products(rounded):
            left @ right
            rates.append(2 * size**3 / min(seconds(lambda: left @ right) for _ in range(5)))
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.itemsize  # read and written
    bandwidth = moved / min(seconds(lambda: target.copy_(source)) for _ in range(5))
    return Machine(*rates, bandwidth)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call, on a GPU until it has finished."""
    gc.collect()
    _synchronize()
    start = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - start


def compare(benchmark: Benchmark, of: Machine, repeats: int | None = None) -> list[dict]:
    """One row a way: median, least and longest time, peak memory, ratios to the library's way."""
    case = benchmark.case()
    times = alternating(case, repeats or benchmark.repeats)
    memory = peaks(benchmark)
    own = next(iter(case.ways))
    floor = of.floor(case)
    return [
        {
            "subject": benchmark.subject,
            "shape": benchmark.shape,
            "way": way,
            "median_s": (median := statistics.median(runs)),
            "min_s": min(runs),
            "max_s": max(runs),
            "times_ours": median / statistics.median(times[own]),
            "peak_mb": memory[way],
            "times_our_memory": memory[way] / max(memory[own], 1e-3),
            "floor_s": floor,
            "share_of_floor": floor / median,
        }
        for way, runs in times.items()
    ]


SLOW = 5.0
"""Seconds from which a first call counts, and two are enough."""


def alternating(case: Case, repeats: int) -> dict[str, list[float]]:
    """Times of all ways, after one call each that does not count unless it was long."""
    times: dict[str, list[float]] = {}
    for name, way in case.ways.items():
        first = seconds(way)
        times[name] = [first] if first > SLOW else []
    for repeat in range(repeats):
        for name, way in case.ways.items():
            if not times[name] or times[name][0] <= SLOW or repeat == 0:
                times[name].append(seconds(way))
    return times


def peaks(benchmark: Benchmark) -> dict[str, float]:
    """By way, the most memory in MB that one call takes beyond its inputs."""
    if torch.cuda.is_available():
        return {name: _peak_on_gpu(way) for name, way in benchmark.case().ways.items()}
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_measure_peaks, args=(benchmark, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"measuring the memory of {benchmark.subject} failed")
    return answers.get()


def _peak_on_gpu(way: Callable[[], object]) -> float:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _measure_peaks(benchmark: Benchmark, answers) -> None:
    torch.set_num_threads(1)  # buffers of more threads would count as the way's
    give_back = ctypes.CDLL(None).malloc_trim
    found = {}
    for name, way in benchmark.case().ways.items():
        gc.collect()
        give_back(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use
        before = _status("VmRSS")
        way()
        found[name] = _status("VmHWM") - before
    answers.put(found)


def _status(name: str) -> float:
    """Memory of this process in MB: now (VmRSS) or at most (VmHWM). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def precision(mixed: bool):
    """How the alternatives get low precision: by autocast, as is usual."""
    device = hardware.device().type
    return torch.autocast(device, torch.bfloat16) if mixed else nullcontext()


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
