"""What the parts of the job share: how they end, and the last words that they leave."""

import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from paperlib.files import write_json, write_text
from paperlib.notebooks import FOR_USERS, UsageError

INTERRUPTED = 130
"""Exit code of what the user stopped."""


def in_processes(
    arguments: list[str], report: Path | None, processes: int, machines: int, meet: str
) -> int:
    """``python -m paperlib`` with ``arguments`` in so many processes; returns the exit code."""
    host, _, port = meet.rpartition(":")
    is_place = host and port.isdecimal()
    if machines == 1 and not is_place:
        raise UsageError(f"--meet must be HOST:PORT, not {meet}.")
    if machines > 1 and (not is_place or host in ("localhost", "127.0.0.1") or port == "0"):
        raise UsageError(
            f"--machines {machines} takes --meet HOST:PORT too, the same on all of them: the name "
            "of one of them, and a port that is free there."
        )
    if host != "localhost":
        try:
            socket.getaddrinfo(host, None)
        except OSError:
            raise UsageError(f"--meet {meet}: the host {host} is not known here.") from None
    import torch

    from paperlib import processes as together

    gpus = torch.cuda.device_count()
    if 0 < gpus < processes:
        raise UsageError(
            f"--processes {processes}: each takes a GPU, of which there are {gpus} here; start so "
            'many, or set CUDA_VISIBLE_DEVICES="" to train on the CPU.'
        )
    started = time.time()
    try:
        together.run(arguments, processes, machines, meet)
    except together.ProcessesError as error:
        if error.traceback:
            print(error.traceback, file=sys.stderr)
        # Of several machines with one report, the one where it began says what it was.
        if error.follows and report and report.exists() and report.stat().st_mtime >= started:
            return 1
        return fail(str(error), report)
    return 0


def check_output(path: Path) -> None:
    """Refuse a file that could not be written, before hours are spent on what belongs in it."""
    if path.is_dir():
        raise UsageError(f"{path} cannot be written: it is a folder.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except FileExistsError:
        raise UsageError(f"{path} cannot be written: {path.parent} is no folder.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def job(what: str, compute: Callable[[], dict | None], output: Path, report: Path | None) -> int:
    """Write what ``compute`` returns to ``output``, or why it failed; returns the exit code."""
    from paperlib.distributed import Reported

    try:
        result = compute()
    except UsageError as error:
        return fail(str(error), report)
    except Reported:
        return 1
    except Exception as error:
        if type(error).__name__ in FOR_USERS:
            return fail(f"{error}.", report)
        traceback.print_exc()
        return fail(f"{what} failed.\n{type(error).__name__}: {error}", report)
    if result is not None:  # of several processes, only the first one has something to write
        write_json(output, result)
    return 0


def fail(message: str, report: Path | None) -> int:
    """Put ``message`` into the file ``report``, for whoever waits for it, or on the screen."""
    if report:
        write_text(report, message + "\n")
    else:
        print(message, file=sys.stderr)
    return 1
