"""Several processes that train one model together, by PyTorch's own engine.

``torchrun`` starts them; inside :func:`together` they are one group, over NCCL on GPUs and gloo on
CPUs. Everything here holds for a process by itself too, which has nobody to send to.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel

from paperlib.lifetime import end_with_parent

PATIENCE = timedelta(days=30)
"""How long processes wait for one that prepares text, or waits for a lock."""

SECONDS_FOR_OTHERS = 2.0
"""How long a process that only lost its connection waits before it says so: the one at fault is to
be noticed first."""

GONE = "another process is gone"
"""How the report of a process begins whose only fault is a lost connection."""

_patient: dist.ProcessGroup | None = None


class Reported(Exception):
    """What went wrong has been handed to torchrun, which says it once for all processes."""


@contextmanager
def together() -> Iterator[None]:
    """Inside, the processes that torchrun started are one group; on GPUs, each has one.

    Raises :class:`Reported` in place of any exception from inside of a group.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    global _patient
    end_with_parent()
    dist.init_process_group(backend)
    _patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    if rank() > 0:
        os.environ["PAPERLIB_BAR_LINE"] = "-1"  # one of them shows how far all are
    try:
        yield
    except Exception as error:
        if _lost_connection(error):
            time.sleep(SECONDS_FOR_OTHERS)
            error = ConnectionError(f"{GONE} ({str(error).splitlines()[0]})")
        # The group is left as it is: to take leave of processes that are gone may take forever.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it need not be told to end
        get_error_handler().record_exception(error)
        raise Reported from error
    _patient = None
    dist.destroy_process_group()


def _lost_connection(error: Exception) -> bool:
    """Whether all that is wrong is that another process does not answer."""
    # gloo's errors have no class of their own.
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


def rank() -> int:
    """This process's number, from 0 on."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def size_here() -> int:
    """Number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def share(number: int) -> slice:
    """Which of ``number`` things in a row are this process's."""
    return slice(rank() * number // size(), (rank() + 1) * number // size())


def total(values: Tensor) -> Tensor:
    """The sum over processes, the same in all of them; ``values`` may be overwritten by it."""
    if size() > 1:
        values = values.contiguous()
        dist.all_reduce(values)
    return values


def joined(mine: Tensor, number: int) -> Tensor:
    """All ``number`` rows, of which each process has its :func:`share`."""
    if size() == 1:
        return mine
    rows = mine.new_zeros(number, *mine.shape[1:])
    rows[share(number)] = mine
    return total(rows)


def any_says(flag: bool) -> bool:
    """Whether ``flag`` is set in any of the processes."""
    if size() == 1:
        return flag
    said = torch.tensor(int(flag))
    dist.all_reduce(said, group=_patient)
    return bool(said)


def wait() -> None:
    """Until all processes have come here."""
    any_says(False)


@contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block, then all others do, and find there what it left."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


class Gradients:
    """Gradients of a model, added up over the processes by ``DistributedDataParallel``.

    Without ``exchange`` each process keeps its own, as if it were alone.
    """

    def __init__(self, model: nn.Module, exchange: bool = True):
        self._engine = None
        if size() > 1 and exchange:
            self._engine = DistributedDataParallel(_Calling(model), gradient_as_bucket_view=True)

    def add(self, objective: Callable[[], Tensor], more: bool = False) -> None:
        """Those of a sum of which each process has the part ``objective()``.

        ``more``: the parameters' gradients are sent only when other objectives have been added.
        """
        if self._engine is None:
            objective().backward()
            return
        with self._engine.no_sync() if more else nullcontext():
            # The engine takes the mean, where we have parts of a sum.
            (self._engine(objective) * size()).backward()


class _Calling(nn.Module):
    """What the engine wants: a module that computes in ``forward``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, objective: Callable[[], Tensor]) -> Tensor:
        return objective()
