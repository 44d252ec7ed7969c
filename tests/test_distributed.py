"""Processes that train together: the numbers of one, however many, whoever is killed."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from filelock import FileLock

from paperlib import distributed, jobs, paths, processes, threads
from paperlib.cli import main
from paperlib.corpora import CorpusError
from paperlib.files import CheckpointError
from paperlib.hardware import HardwareError
from paperlib.notebooks import FOR_USERS, UsageError
from paperlib.shards.documents import TextError
from paperlib.training import TrainingError

CREW = Path(__file__).with_name("crew.py")
SECONDS = 60


@pytest.fixture
def profile(tmp_path):
    """Smoke's section 4.3 in many short epochs; nine streams, which three processes can share.

    The discriminator's come in groups, whose gradients are sent together.
    """
    text = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8")
    before, large = text.split("[large]")
    large = large.replace("batch_size = 4", "batch_size = 9")
    large = large.replace("part = 60", "part = 200").replace("bptt = 35", "bptt = 10")
    large = large.replace("max_epochs = 3\npatience = 3", "max_epochs = 12\npatience = 12")
    large = large.replace("[large.discriminator]", "[large.discriminator]\nparts = 2")
    path = tmp_path / "own.toml"
    path.write_text(f"{before}[large]{large}", encoding="utf-8")
    return str(path)


def environment(runs):
    """One thread a process, trainings in a folder of their own, and no GPU: there may be one."""
    own = {"PAPERLIB_RUNS": str(runs), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return os.environ | own


def command(profile, output, number):
    """Section 4.3 in so many processes."""
    options = ["--profile", profile, "--output", str(output), "--processes", str(number)]
    return [sys.executable, "-m", "paperlib", "large", *options]


def histories(runs):
    """The curve of every training that is done, by its address."""
    return {
        str(path.parent.relative_to(runs)): json.loads(path.read_text())["history"]
        for path in sorted(runs.glob("*/*/progress.json"))
    }


def assert_same(found, expected):
    """The same trainings with the same numbers, to what another order of summation may change."""
    assert found.keys() == expected.keys()
    for address, history in expected.items():
        assert len(found[address]) == len(history)
        for one, other in zip(found[address], history, strict=True):
            assert one == pytest.approx(other, rel=2e-5, abs=1e-6)


@pytest.mark.slow
def test_one_process_and_three_get_the_same_numbers(profile, tmp_path):
    for number in (1, 3):
        runs, output = tmp_path / f"runs{number}", tmp_path / f"{number}.json"
        subprocess.run(
            command(profile, output, number), env=environment(runs), check=True, timeout=300
        )
        record = json.loads(next(runs.glob("large_language_model/*/done.json")).read_text())
        assert record["processes"] == number
    assert (tmp_path / "1.json").read_text() == (tmp_path / "3.json").read_text()
    assert_same(histories(tmp_path / "runs3"), histories(tmp_path / "runs1"))


@pytest.mark.slow
def test_another_number_of_processes_goes_on_in_the_middle_of_an_epoch(profile, tmp_path):
    def crew(runs, number, *stop):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        arguments = [f"--nproc-per-node={number}", str(CREW), profile, *stop]
        subprocess.run([*launcher, *arguments], env=environment(runs), check=True, timeout=300)

    crew(tmp_path / "whole", 1)
    crew(tmp_path / "broken", 2, "17")
    state = next((tmp_path / "broken").glob("*/*/checkpoint.pt"))
    progress = torch.load(state, weights_only=True)["progress"]
    assert progress["batch"] > 0  # in the middle
    crew(tmp_path / "broken", 3, "9")
    crew(tmp_path / "broken", 1)
    assert_same(histories(tmp_path / "broken"), histories(tmp_path / "whole"))


@pytest.mark.slow
def test_a_killed_process_ends_the_job_with_its_checkpoint_whole(profile, tmp_path):
    runs, output, report = tmp_path / "runs", tmp_path / "x.json", tmp_path / "report.txt"
    job = subprocess.Popen(
        [*command(profile, output, 2), "--report", str(report)],
        env=environment(runs),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(runs.glob("large_language_model/*/checkpoint.pt")):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for child in psutil.Process(job.pid).children():
        if child.environ().get("RANK") == "1":
            child.kill()
    killed = time.monotonic()
    _, screen = job.communicate(timeout=SECONDS)
    assert time.monotonic() - killed < SECONDS
    assert job.returncode == 1
    assert "Process 1 of 2 (counted from 0) was ended by SIGKILL" in report.read_text()
    assert "the next start goes on from the last checkpoint" in report.read_text()
    assert "Traceback" not in screen
    assert not output.exists()

    assert next(runs.glob("*/*/checkpoint.pt")).is_file()
    subprocess.run(command(profile, output, 1), env=environment(runs), check=True, timeout=300)
    whole = tmp_path / "whole"
    subprocess.run(command(profile, output, 1), env=environment(whole), check=True, timeout=300)
    assert_same(histories(runs), histories(whole))


@pytest.mark.slow
def test_a_killed_launcher_leaves_nobody_who_holds_the_lock(profile, tmp_path):
    runs, output = tmp_path / "runs", tmp_path / "x.json"
    job = subprocess.Popen(
        command(profile, output, 2), env=environment(runs), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not list(runs.glob("large_language_model/*/checkpoint.pt")):
        assert job.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = psutil.Process(job.pid).children(recursive=True)
    assert len(workers) == 2
    job.kill()
    job.wait()
    _, left = psutil.wait_procs(workers, timeout=10)
    assert not left
    lock = next(runs.glob("large_language_model/*/lock"))
    with FileLock(lock, timeout=1):
        pass


def test_what_cannot_be_shared_is_said_once(tmp_path):
    text = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8")
    before, large = text.split("[large]")
    dropout = tmp_path / "dropout.toml"
    dropout.write_text(
        f"{before}[large]{large.replace('regularised = false', 'regularised = true')}",
        encoding="utf-8",
    )
    report = tmp_path / "report.txt"
    job = [*command(str(dropout), tmp_path / "x.json", 2), "--report", str(report)]
    run = subprocess.run(
        job, env=environment(tmp_path / "runs"), capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 1
    assert report.read_text().count("training with dropout runs in one process") == 1
    assert "failed: training with dropout" in report.read_text()
    assert "Traceback" not in run.stderr


def test_more_processes_than_streams_are_refused(monkeypatch):
    from paperlib.large_study import LargeStudy
    from paperlib.settings import load

    monkeypatch.setattr(distributed, "share", lambda number: slice(number, number))
    with pytest.raises(TrainingError, match="4 streams cannot be shared by more processes"):
        _ = LargeStudy(load("smoke"), seed=77).initial


def test_shares_are_all_there_is_and_nobody_has_two(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 5)
    for number in (5, 12, 64):
        taken = []
        for rank in range(5):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            mine = distributed.share(number)
            taken += range(number)[mine]
        assert taken == list(range(number))


def test_a_process_by_itself_has_everything_and_waits_for_nobody():
    values = torch.arange(6.0)
    assert (distributed.rank(), distributed.size()) == (0, 1)
    assert distributed.share(7) == slice(0, 7)
    assert distributed.total(values) is values
    assert distributed.joined(values, 6) is values
    assert not distributed.any_says(False)
    with distributed.first_goes_first():
        distributed.wait()


def test_a_failure_is_told_by_its_kind():
    killed = processes.ProcessFailure(local_rank=1, pid=5, exitcode=-9, error_file="")
    error = processes._error(3, 8, killed)
    assert str(error).startswith("Process 3 of 8 (counted from 0) was ended by SIGKILL, most often")
    ended = processes.ProcessFailure(local_rank=0, pid=5, exitcode=7, error_file="")
    assert "Process 0 of 2 (counted from 0) ended with exit code 7." in str(
        processes._error(0, 2, ended)
    )


def failure(exitcode, timestamp, says=None):
    """Of a process that ended at ``timestamp``, with what it recorded, if anything."""
    one = processes.ProcessFailure(local_rank=0, pid=5, exitcode=exitcode, error_file="")
    one.timestamp = timestamp
    if says is not None:
        one.error_file_data = {"message": {"message": says, "extraInfo": {"py_callstack": "…"}}}
    return one


def test_the_cause_is_who_was_killed_or_failed_by_itself():
    lost = failure(1, 100, f"ConnectionError: {distributed.GONE} (Connection reset by peer)")
    told, stopped = failure(130, 100), failure(-15, 100)
    killed, failed = failure(-9, 101), failure(1, 101, "TrainingError: no")
    assert processes.cause({0: lost, 1: killed, 2: told}) == 1
    assert processes.cause({0: told, 1: stopped, 2: lost, 3: failed}) == 3
    assert processes.cause({0: lost, 1: told}) == 0
    late = failure(-9, 101 + processes.SECONDS_TO_STOP)  # by the launcher, for it did not stop
    assert processes.cause({0: failed, 1: late}) == 0
    assert "had to stop: another process is gone" in str(processes._error(0, 2, lost))


def test_a_trace_is_kept_of_what_is_no_sentence_for_users():
    for says, trace in (("TextError: no text", ""), ("IndexError: list index", "…")):
        error = processes._error(0, 2, failure(1, 100, says))
        assert error.traceback == trace
    assert "failed: IndexError: list index" in str(error)


def subclasses(kind):
    """Of a class, at any depth."""
    return {kind}.union(*map(subclasses, kind.__subclasses__()))


def test_all_kinds_of_errors_for_users_are_known_by_name():
    for kind in (CorpusError, TextError, HardwareError, TrainingError, CheckpointError):
        assert {one.__name__ for one in subclasses(kind)} <= set(FOR_USERS)


@pytest.mark.parametrize(
    ("given", "number", "each"), [("16", 8, "2"), ("2", 4, "1"), ("", 3, "4"), (None, 5, "2")]
)
def test_processes_share_the_threads_there_are(given, number, each, monkeypatch):
    """Snakemake says how many in every variable that there is."""
    for variable in threads.SETTINGS:
        monkeypatch.setenv(variable, given or "")
        if given is None:
            monkeypatch.delenv(variable)
    monkeypatch.setattr(threads, "cores", lambda: 12)
    started = []
    monkeypatch.setattr(
        processes, "elastic_launch", lambda config, _: lambda *_: started.append(config)
    )
    processes.run([], number, 2, "node1:29400")
    assert {os.environ[variable] for variable in threads.SETTINGS} == {each}
    assert started[0].nproc_per_node == number
    assert started[0].rdzv_configs["read_timeout"] == processes.SECONDS_TO_MEET == 600


@pytest.mark.parametrize("follows", [True, False])
def test_of_a_report_that_machines_share_the_cause_stays(follows, tmp_path, monkeypatch):
    report = tmp_path / "report.txt"

    def fails(*arguments):
        report.write_text("elsewhere", encoding="utf-8")
        raise processes.ProcessesError("here", follows=follows)

    monkeypatch.setattr(processes, "run", fails)
    monkeypatch.setattr(jobs.socket, "getaddrinfo", lambda *_: [])
    assert jobs.in_processes([], report, 1, 2, "node1:29400") == 1
    assert report.read_text(encoding="utf-8") == ("elsewhere" if follows else "here\n")


@pytest.mark.parametrize("meet", [(), ("--meet", "localhost:29400"), ("--meet", "node1")])
def test_several_machines_have_to_be_told_where_they_meet(meet, tmp_path, capsys):
    command = ["large", "--profile", "smoke", "--output", str(tmp_path / "x.json")]
    assert main([*command, "--machines", "2", *meet]) == 2
    assert capsys.readouterr().err == (
        "--machines 2 takes --meet HOST:PORT too, the same on all of them: the name of one of "
        "them, and a port that is free there.\n"
    )


def test_a_place_to_meet_that_is_none_is_refused_at_once(tmp_path, capsys, monkeypatch):
    def unknown(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(jobs.socket, "getaddrinfo", unknown)
    command = ["large", "--profile", "smoke", "--output", str(tmp_path / "x.json")]
    for meet, machines, says in (
        ("foo", "1", "--meet must be HOST:PORT, not foo.\n"),
        ("foo:bar", "1", "--meet must be HOST:PORT, not foo:bar.\n"),
        ("foo:29400", "1", "--meet foo:29400: the host foo is not known here.\n"),
        ("foo:29400", "2", "--meet foo:29400: the host foo is not known here.\n"),
    ):
        more = ["--processes", "2", "--machines", machines, "--meet", meet]
        assert main([*command, *more]) == 2
        assert capsys.readouterr().err == says


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="--processes 2: each takes a GPU, of which there are 1"):
        jobs.in_processes([], None, 2, 1, "localhost:0")


def test_machines_that_do_not_meet_are_told_so_in_a_sentence(monkeypatch):
    def fails(*arguments):
        raise processes.RendezvousError("no answer\nand so on")

    monkeypatch.setattr(processes, "elastic_launch", lambda *_: fails)
    with pytest.raises(processes.ProcessesError, match="did not meet at node1:29400") as raised:
        processes.run([], 1, 2, "node1:29400")
    assert "\n" not in str(raised.value)
