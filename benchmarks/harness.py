"""What all benchmarks share: alternating repetitions, peak memory, and the floor of the machine.

A *case* is one piece of work in several *ways*; the first is the library's, the others are what
people would use instead. A first call of each way does not count: it finds no buffers and compiles
what is to be compiled. Then calls of all ways alternate, so that a busy moment of the machine hits
each alike. Peak memory is taken in a fresh process (on a GPU: by its allocator).

All ways share a process that keeps the memory it frees (:func:`paperlib.hardware.keep_memory`), so
that they differ by their arithmetic alone. People's own scripts do not do that: on a CPU the usual
way is timed a second time, in the same turns, in a process that leaves the C library as it is.
"""

import ctypes
import gc
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import nn

from paperlib import hardware, paths, threads

PRECISIONS = (False, True) if hardware.precision("auto") == "mixed" else (False,)
"""Whether products are rounded: both ways where the hardware gains from it."""

SECTION_4 = ("quick", "overnight", *(["medium"] if torch.cuda.is_available() else []))
"""Profiles whose networks of section 4 are timed: the paper's size where there is a GPU."""

LEAST = 3
"""Calls of each way that are timed."""

AS_PEOPLE_RUN_IT = ", as people run it"
"""What the name of the usual way ends in where the process has its memory by default settings."""


@dataclass(frozen=True)
class Work:
    """The least there is to do: operations of matrix products, and bytes to move."""

    operations: float = 0.0
    moved: float = 0.0
    mixed: bool = False
    """Whether the products are rounded, which changes the floor."""


@dataclass(frozen=True)
class Case:
    """One piece of work: its ways by name, the library's first, then the usual one."""

    ways: dict[str, Callable[[], object]]
    work: Work = Work()
    work_of: dict[str, Work] = field(default_factory=dict)
    """Of ways that do another piece of work, for comparison."""
    tokens: int = 0
    """That a call of each way goes through, where it makes sense to count them."""
    evaluations: float = 0.0
    """Of a function, where these are the arithmetic and no matrix product is."""
    numpy_only: bool = False
    """Whether a GPU has no part in it."""


@dataclass(frozen=True)
class Benchmark:
    """How to build a case, so that a fresh process can build it too."""

    subject: str
    shape: str
    build: Callable[..., Case]
    arguments: dict = field(default_factory=dict)
    repeats: int = 5
    warm_up: bool = True
    """Not needed where every call starts from nothing."""

    def case(self) -> Case:
        """The case, with its inputs in memory."""
        return self.build(**self.arguments)


@dataclass(frozen=True)
class Machine:
    """Measured rates: operations a second in float32 and in mixed precision, and bytes a second."""

    float32: float
    mixed: float
    bandwidth: float

    def floor(self, work: Work) -> float:
        """Seconds that the work takes at the least."""
        rate = self.mixed if work.mixed else self.float32
        return max(work.operations / rate, work.moved / self.bandwidth)


def precision_name(mixed: bool) -> str:
    """As it stands in the subject of a benchmark."""
    return "mixed precision" if mixed else "float32"


def precision(mixed: bool):
    """How the alternatives get low precision: by autocast, as is usual."""
    device = hardware.device().type
    return torch.autocast(device, torch.bfloat16) if mixed else nullcontext()


def parameters(model: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in model.parameters())


def step_bytes(model: nn.Module, optimizer: str = "sgd") -> int:
    """Bytes that a training step of a float32 model moves at the least.

    Weights are read and gradients written, then both are read and the weights written; Adam reads
    and writes its two moments too.
    """
    return 4 * parameters(model) * (9 if optimizer == "adam" else 5)


def use_threads(number: int) -> None:
    """Restrict this process, and those that it starts, to ``number`` cores; torch's threads too.

    So :func:`paperlib.threads.in_blocks` has as many. Without effect on NumPy's where the system
    cannot restrict a process.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:number])
    os.environ |= threads.settings(number)
    torch.set_num_threads(number)


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
    """One row a way: times, memory, ratios to the library's way, share of the floor, and commit."""
    case = benchmark.case()
    own, *others = case.ways
    timers = {name: partial(seconds, way) for name, way in case.ways.items()}
    elsewhere = nullcontext()
    if others and _pages_cost(case):
        elsewhere = in_its_own_process(benchmark, others[0])
    with elsewhere as timer:
        if timer:
            timers[others[0] + AS_PEOPLE_RUN_IT] = timer
        times = alternating(timers, repeats or benchmark.repeats, benchmark.warm_up)
    memory = peaks(benchmark, case)
    commit = paths.commit()
    rows = []
    for name, runs in times.items():
        way = name.removesuffix(AS_PEOPLE_RUN_IT)
        median = statistics.median(runs)
        floor = of.floor(case.work_of.get(way, case.work))
        rows.append(
            {
                "subject": benchmark.subject,
                "shape": benchmark.shape,
                "way": name,
                "median_s": median,
                "min_s": min(runs),
                "max_s": max(runs),
                "times_ours": median / statistics.median(times[own]),
                "tokens_per_s": case.tokens / median if case.tokens else None,
                "peak_mb": memory[way],
                "times_our_memory": memory[way] / max(memory[own], 1e-3),
                "floor_s": floor,
                "share_of_floor": floor / median,
                "commit": commit,
            }
        )
    return rows


def alternating(
    timers: dict[str, Callable[[], float]], repeats: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """What all timers say, turn by turn, each after calls that do not count."""
    if warm_up:
        for timer in timers.values():
            for _ in range(2 if torch.cuda.is_available() else 1):  # a GPU captures the second one
                timer()
    times: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(max(LEAST, repeats)):
        for name, timer in timers.items():
            times[name].append(timer())
    return times


@contextmanager
def in_its_own_process(benchmark: Benchmark, way: str) -> Iterator[Callable[[], float]]:
    """A timer of one way in a fresh process, which has as many threads and no setting of memory."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (benchmark, way, torch.get_num_threads(), there)
    process = context.Process(target=_time_when_asked, args=arguments, daemon=True)
    process.start()
    there.close()  # so that its end is noticed here

    def timer() -> float:
        try:
            here.send(True)
            return here.recv()
        except (EOFError, OSError):
            raise RuntimeError(f"timing {benchmark.subject} in a process failed") from None

    try:
        yield timer
    finally:
        here.close()
        process.join()


def _time_when_asked(benchmark: Benchmark, way: str, threads: int, asked: Connection) -> None:
    torch.set_num_threads(threads)
    call = benchmark.case().ways[way]
    while True:
        try:
            asked.recv()
        except EOFError:
            return
        asked.send(seconds(call))


def _pages_cost(case: Case) -> bool:
    """Whether the case works on tensors in memory that the C library manages."""
    return not (case.numpy_only or torch.cuda.is_available())


def peaks(benchmark: Benchmark, case: Case) -> dict[str, float]:
    """By way, the most memory in MB that one call takes beyond its inputs.

    The number of threads is that of this process.
    """
    if torch.cuda.is_available() and not case.numpy_only:
        return {name: _peak_on_gpu(benchmark.case().ways[name]) for name in case.ways}
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    arguments = (benchmark, torch.get_num_threads(), answers)
    process = context.Process(target=_measure_peaks, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"measuring the memory of {benchmark.subject} failed")
    return answers.get()


def _peak_on_gpu(way: Callable[[], object]) -> float:
    # A fresh case, for what a GPU replays takes no memory any more. The workspaces of libraries,
    # which belong to no call, are there since the case was timed.
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    way()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _measure_peaks(benchmark: Benchmark, threads: int, answers) -> None:
    torch.set_num_threads(threads)
    give_back = ctypes.CDLL(None).malloc_trim
    if benchmark.warm_up:  # of another case, so that what a first call leaves counts for this one
        for way in benchmark.case().ways.values():
            way()
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


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
