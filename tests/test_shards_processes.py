"""Text into shards in several processes: their memory, and what becomes of them when one ends."""

import gzip
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from paperlib.shards import prepare
from paperlib.shards.documents import TextError
from paperlib.shards.prepare import TextSettings


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))


def killed(work, number):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_said_and_the_next_start_goes_on(tmp_path, monkeypatch):
    folder, options = tmp_path / "text", TextSettings(part_bytes=1000, vocabulary=60)
    folder.mkdir()
    for number in range(4):
        lines = "\n\n".join(f"line {k} of {number}" for k in range(200))
        (folder / f"{number}.txt").write_text(lines, encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_work", killed)
        with pytest.raises(TextError, match="most often because the memory ran out"):
            prepare.prepare(folder, options, 2)
    assert prepare.prepare(folder, options, 2).tokens("train")


def packed_words(folder, size):
    """A compressed file of about ``size`` bytes, nearly all of whose words are different ones."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    with gzip.open(folder / "all.gz", "wb", compresslevel=1) as file:
        for _ in range(size // 1_200_000):
            digits = rng.integers(97, 123, (100_000, 12), dtype=np.uint8)
            digits[:, 11] = 32
            digits[::50, 10:] = 10
            file.write(digits.tobytes())


def start_in_processes(folder):
    """``paperlib shards`` in two processes, left running."""
    command = [sys.executable, "-m", "paperlib", "shards", str(folder), "--processes", "2"]
    return subprocess.Popen(
        command,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # pytest may ignore it
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def tree(process):
    """The process and all below it."""
    return [process, *process.children(recursive=True)]


def resident(process):
    """Bytes that a process holds in memory; 0 when it is gone."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


@pytest.mark.slow
def test_memory_stays_small_where_all_words_are_different(tmp_path):
    packed_words(tmp_path / "text", 24_000_000)
    packed = (tmp_path / "text" / "all.gz").read_bytes()
    (tmp_path / "text" / "again.gz").write_bytes(packed)
    job, peak = start_in_processes(tmp_path / "text"), 0
    while job.poll() is None:
        peak = max(peak, sum(map(resident, tree(psutil.Process(job.pid)))))
        time.sleep(0.05)
    assert job.returncode == 0
    assert peak < 700e6


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_nobody_works_on_when_the_first_process_is_stopped(end, tmp_path):
    packed_words(tmp_path / "text", 60_000_000)
    (tmp_path / "text" / "more.txt").write_text("one more\n", encoding="utf-8")
    job = start_in_processes(tmp_path / "text")
    first = psutil.Process(job.pid)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*.numbers")):  # the work has begun
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    others = first.children(recursive=True)
    assert others
    job.send_signal(end)
    assert job.wait(timeout=5) == (130 if end == signal.SIGINT else -9)
    _, left = psutil.wait_procs(others, timeout=5)
    assert not left


def test_the_processes_do_without_pytorch():
    code = "import sys, paperlib.shards.prepare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
