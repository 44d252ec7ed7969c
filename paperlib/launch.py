"""The main job: Snakemake on the whole workflow or a part of it, watched until it ends.

Snakemake decides what runs when. What is added here: the choice of the profile, one start at a
time, an end within seconds when a part fails, and last lines that say what happened.
"""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from paperlib import files, notebooks, paths, settings

SNAKEFILE = Path(__file__).parents[1] / "Snakefile"
GRACE = 15
"""Seconds that the parts have to stop in after they were told to."""


class LaunchError(Exception):
    """The job cannot start; the message is one sentence for the user."""


def state(profile: str) -> Path:
    """What the workflow remembers: a mark for each part that is done, and the last failure."""
    return paths.PROJECT / "runs" / "workflow" / profile


def text_there_is(name: str) -> str:
    """Which text of this name was put where texts are looked for, in a line that changes with it.

    What was downloaded counts as not there: it is the text that would be downloaded. Of a text's
    files, only those at the top are looked at: their names, sizes and times of change.
    """
    for folder in (*(place / name for place in paths.data()), paths.in_project(name)):
        if not folder.is_dir():
            continue
        if (folder / paths.DOWNLOADED).exists():
            return ""
        try:
            # Links to nothing, which some editors leave, are no text.
            there = {path.name: files.state(path) for path in folder.iterdir() if path.exists()}
            text = json.dumps(there, sort_keys=True)
            return f"{folder}, state {hashlib.sha256(text.encode()).hexdigest()[:12]}"
        except OSError as error:  # whoever reads it says so
            return str(error)
    return ""


def choose_profile() -> tuple[str, str]:
    """``medium`` with a CUDA GPU, ``quick`` without; and the reason."""
    # Importing torch takes seconds, so it is asked only where there may be a GPU.
    if not shutil.which("nvidia-smi"):
        return "quick", "there is no CUDA GPU here"
    question = "import torch; print(torch.cuda.get_device_name())"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True)
    if answer.returncode == 0:
        return "medium", f"there is a CUDA GPU, {answer.stdout.strip()}"
    return "quick", "PyTorch finds no CUDA GPU here"


def launch(
    profile: str | None = None,
    *,
    only: str | None = None,
    seeds: int | None = None,
    experiments: str | None = None,
    cores: int | None = None,
    force: bool = False,
) -> int:
    """Run the notebooks of a profile, or ``only`` one with what it depends on.

    Returns the exit code: 0, 1 after a failure, 130 after an interruption.
    """
    profile, reason = choose_profile() if profile is None else (profile, "as asked")
    plan = settings.load(profile, seeds=seeds, experiments=experiments)
    targets = [notebooks.find(only)] if only else list(notebooks.declared().values())
    targets = [target for target in targets if target.has_part_in(plan)]
    if not targets:
        raise LaunchError(f"Notebook {only} has nothing to show: what it is about is not run.")
    _say(f"Profile {profile} ({reason}): {plan.summary}.")
    report = state(profile) / "failure.txt"
    with _alone(state(profile) / "lock") as lock:
        report.unlink(missing_ok=True)
        started = time.time()
        selection = {"seeds": seeds, "experiments": experiments}
        command = snakemake(profile, targets, selection, cores=cores, force=force)
        code = _watch(command, report, lock)
    if code == 0:
        _say(_what_was_done(profile, started) + " Look at:")
        _say(_where_to_look(profile, targets))
    elif code == 130:
        _say("Interrupted. What is finished stays; the next start goes on from there.")
    else:
        _say("What is finished stays; the next start goes on from there.")
        _say(report.read_text(encoding="utf-8").rstrip() if report.is_file() else NO_REPORT)
    return code


NO_REPORT = "Snakemake could not go on; the lines above say why."


def snakemake(
    profile: str,
    targets: list[notebooks.Notebook],
    selection: dict[str, int | str | None],
    *,
    cores: int | None,
    force: bool,
) -> list[str]:
    """The command line that makes ``targets`` and what they depend on.

    ``selection`` holds what is run in place of what the profile says.
    """
    config = [f"profile={profile}", "supervised=1"]
    config += [f"{name}={value}" for name, value in selection.items() if value is not None]
    command = [sys.executable, "-m", "snakemake", *(target.name for target in targets)]
    command += ["--snakefile", str(SNAKEFILE), "--directory", str(paths.PROJECT)]
    command += ["--cores", str(cores or "all"), "--config", *config]
    # A lock of Snakemake's own would outlive a killed run; ours does not (see _alone). And what a
    # failed notebook leaves incomplete is put back by paperlib.notebooks, better than by deleting.
    command += ["--nolock", "--rerun-incomplete", "--keep-incomplete"]
    command += ["--scheduler", "greedy", "--quiet", "rules", "progress", "host", "reason"]
    if shutil.which("nvidia-smi"):
        command += ["--resources", f"gpu_jobs={os.environ.get('PAPERLIB_GPU_JOBS', '3')}"]
    if force:
        needed = {name for target in targets for name in (target.name, *target.needs)}
        command += ["--forcerun", *sorted(needed)]
    return command


@contextmanager
def _alone(path: Path) -> Iterator[int]:
    """Hold the lock file at ``path`` and yield it; what a killed start left running is stopped.

    Snakemake inherits the lock, so it is free only when both have ended. The file holds our
    process and Snakemake's process group.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        if not _locked(lock):
            owner, group = map(int, path.read_text().split() or (0, 0))
            if _alive(owner) or not group:
                raise LaunchError(f"Another start (process {owner}) is at work in this folder.")
            _stop(group, lambda: _locked(lock))
        _note(lock, os.getpid(), 0)
        yield lock
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _note(lock: int, owner: int, group: int) -> None:
    os.truncate(lock, 0)
    os.pwrite(lock, f"{owner} {group}\n".encode(), 0)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _watch(command: list[str], report: Path, lock: int) -> int:
    """Run ``command``; stop it when it is interrupted, or soon after ``report`` appears."""
    # Also where the caller ignores interruptions, as a shell does for what runs in its background:
    # the parts inherit that, and could not be told to stop.
    for interruption in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interruption, signal.default_int_handler)
    # A group of its own, so that all parts can be stopped together without stopping the caller.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, process_group=0, pass_fds=[lock], cwd=paths.PROJECT
    )

    def ended() -> bool:
        return process.poll() is not None

    try:
        _note(lock, os.getpid(), process.pid)
        while not _within(0.5, ended):
            # Snakemake by itself would wait for the parts that run beside the failed one.
            if report.is_file() and not _within(3, ended):
                _stop(process.pid, ended)
    except KeyboardInterrupt:
        report.write_text("Interrupted.\n", encoding="utf-8")
        _stop(process.pid, ended)
        return 130
    return 1 if process.returncode or report.is_file() else 0


def _stop(group: int, ended: Callable[[], bool]) -> None:
    """Interrupt a process group, and kill it if it has not ``ended`` after a while."""
    try:
        os.killpg(group, signal.SIGINT)
        stopped = _within(GRACE, ended)
    except KeyboardInterrupt:
        stopped = False
    if not stopped:
        os.killpg(group, signal.SIGKILL)
        _within(GRACE, ended)


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` holds now or soon."""
    deadline = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return holds


def _what_was_done(profile: str, started: float) -> str:
    marks = [mark.stat().st_mtime for mark in state(profile).glob("*.done")]
    if max(marks, default=0) < started:
        return "Nothing to do: all of it is done and unchanged (--force runs the notebooks again)."
    minutes, seconds = divmod(round(time.time() - started), 60)
    return f"Done in {minutes} min {seconds} s."


def _where_to_look(profile: str, targets: list[notebooks.Notebook]) -> str:
    shown = (".md", ".png", ".html")
    results = [name for target in targets for name in target.makes if name.endswith(shown)]
    folder = paths.figures(profile)
    lines = [f"  {folder}/  {', '.join(results)}"] if results else []
    return "\n".join([*lines, f"  {folder / 'notebooks'}/  the notebooks as executed"])


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
