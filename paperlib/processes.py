"""Starting the processes that train together, as torchrun does, and saying what became of them."""

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch.distributed.elastic.agent.server.api import SignalException
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from paperlib import threads
from paperlib.distributed import GONE
from paperlib.lifetime import PARENT
from paperlib.notebooks import FOR_USERS

SECONDS_TO_STOP = 15
"""What the other processes have to stop in after one has failed."""

SECONDS_TO_MEET = 600
"""What machines have to find each other in: PyTorch's own for those that have found the host."""


class ProcessesError(Exception):
    """The processes did not come to their end; the message says which one failed first, and how.

    ``traceback`` is the long form, empty where there is none. ``follows``: the cause lies with a
    process elsewhere, and whoever started that one knows more.
    """

    def __init__(self, message: str, traceback: str = "", follows: bool = False):
        super().__init__(message)
        self.traceback, self.follows = traceback, follows


def run(
    arguments: Sequence[str], processes: int, machines: int = 1, meet: str = "localhost:0"
) -> None:
    """``python -m paperlib`` with ``arguments`` in some processes on this machine.

    On several machines this is called on each with the same ``meet``, the host and port of one of
    them. They share the threads that ``OMP_NUM_THREADS`` allows, or else the cores. Raises
    :class:`ProcessesError` as soon as one fails, having ended the others, and
    ``KeyboardInterrupt`` where the user does.
    """
    # What it has to say about a failure is in the exception.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ[PARENT] = str(os.getpid())
    os.environ |= threads.settings(max(1, threads.allowed() // processes))
    config = LaunchConfig(
        min_nodes=machines,
        max_nodes=machines,
        nproc_per_node=processes,
        run_id="paperlib",
        rdzv_backend="c10d",
        rdzv_endpoint=meet,
        rdzv_configs={"read_timeout": SECONDS_TO_MEET},  # of who comes before the host does
        max_restarts=0,
        shutdown_timeout=SECONDS_TO_STOP,
        logs_specs=DefaultLogsSpecs(),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "paperlib", *arguments)
    except ChildFailedError as error:
        rank = cause(error.failures)
        raise _error(rank, processes * machines, error.failures[rank]) from None
    except (RendezvousError, dist.DistError, OSError) as error:
        raise ProcessesError(
            f"The {machines} machines did not meet at {meet} ({str(error).splitlines()[0]}); start "
            "the command on each of them within ten minutes, with the same --meet HOST:PORT, where "
            "HOST is one of them and PORT is free there."
        ) from None
    except SignalException:
        raise KeyboardInterrupt from None


def cause(failures: Mapping[int, ProcessFailure]) -> int:
    """Which of the processes that failed, by rank, is why all did."""
    first = min(failure.timestamp for failure in failures.values())

    # The likeliest cause first: 0 killed from outside, 1 failed by itself, 2 lost its connection, 3
    # ended by us.
    def order(rank: int) -> tuple[int, int]:
        failure = failures[rank]
        ended_by_us = failure.exitcode in (-signal.SIGTERM, 128 + signal.SIGINT) or (
            failure.exitcode == -signal.SIGKILL and failure.timestamp >= first + SECONDS_TO_STOP - 1
        )
        if ended_by_us:
            return 3, failure.timestamp
        if failure.exitcode < 0:
            return 0, failure.timestamp
        return (2 if _follows(failure) else 1), failure.timestamp

    return min(failures, key=order)


def _follows(failure: ProcessFailure) -> bool:
    recorded = failure.error_file_data["message"]
    return isinstance(recorded, dict) and GONE in recorded["message"]


def _error(rank: int, number: int, failure: ProcessFailure) -> ProcessesError:
    which = f"Process {rank} of {number} (counted from 0)"
    recorded = failure.error_file_data["message"]
    traceback = ""
    if failure.exitcode < 0:
        memory = ", most often because the memory ran out" if failure.exitcode == -9 else ""
        what = f"was ended by {failure.signal_name()}{memory}"
    elif _follows(failure):
        what = f"had to stop: {GONE}"
    elif isinstance(recorded, dict):
        kind, _, says = recorded["message"].partition(": ")
        if kind in FOR_USERS:
            what = f"failed: {says}"
        else:
            what = f"failed: {recorded['message']}"
            traceback = recorded["extraInfo"]["py_callstack"]
    else:
        what = f"ended with exit code {failure.exitcode}"
    after = "What is finished stays; the next start goes on from the last checkpoint."
    return ProcessesError(f"{which} {what}. {after}", traceback, _follows(failure))
