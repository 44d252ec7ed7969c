"""The main job with throw-away notebooks: going on, failing, being stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import launch_job, write_cell

from paperlib import launch as launcher
from paperlib import paths, processes, settings
from paperlib.cli import main
from paperlib.launch import choose_profile, text_there_is

TABLE = """
[00_first]
files = ["first.txt"]
[01_second]
files = ["second.txt"]
[99_last]
needs = ["*"]
"""
SLEEP = "import time; time.sleep(120)"


@pytest.fixture
def project(fake_project):
    """Three notebooks that run through, and a result of the second from before."""
    fake_project.declare(TABLE)
    fake_project.notebook("00_first", write_cell("first.txt"))
    fake_project.notebook("01_second", write_cell("second.txt"))
    fake_project.notebook("99_last", "print('end')")
    fake_project.figures = fake_project.folder / "figures/smoke"
    fake_project.figures.mkdir(parents=True)
    (fake_project.figures / "second.txt").write_text("committed", encoding="utf-8")
    return fake_project


def result(project, name: str) -> str:
    """Text of a result."""
    return (project.figures / name).read_text(encoding="utf-8")


def executed_at(project, name: str) -> int:
    """When the executed copy of a notebook was written."""
    return (project.figures / "notebooks" / f"{name}.ipynb").stat().st_mtime_ns


def launch(project, *options: str) -> subprocess.CompletedProcess:
    """The main job in profile ``smoke``, on two cores."""
    return launch_job(project.folder, "--profile", "smoke", "--cores", "2", *options)


def test_committed_results_do_not_stand_for_a_run(project):
    (project.figures / "first.txt").write_text("committed", encoding="utf-8")
    first = launch(project)
    assert first.returncode == 0, first.stderr
    assert "Profile smoke (as asked)" in first.stderr
    assert f"  {project.figures}/notebooks/  " in first.stderr
    assert (result(project, "first.txt"), result(project, "second.txt")) == ("new", "new")

    # A fresh clone: the results, without the workflow's memory of them.
    shutil.rmtree(project.folder / "runs")
    shutil.rmtree(project.folder / ".snakemake")
    before = executed_at(project, "00_first")
    assert launch(project).returncode == 0
    assert executed_at(project, "00_first") > before

    # A result that is gone is made again, and nothing else.
    before = [executed_at(project, name) for name in ("00_first", "01_second")]
    (project.figures / "second.txt").unlink()
    assert launch(project, "--only", "01").returncode == 0
    assert result(project, "second.txt") == "new"
    after = [executed_at(project, name) for name in ("00_first", "01_second")]
    assert after[0] == before[0]
    assert after[1] > before[1]

    again = launch(project, "--only", "01")
    assert "Nothing to do" in again.stderr
    assert executed_at(project, "01_second") == after[1]
    assert "Done in" in launch(project, "--only", "01", "--force").stderr
    assert executed_at(project, "01_second") > after[1]
    assert executed_at(project, "00_first") == after[0]


def test_failure_then_going_on(project):
    # One after the other: what ends just as another fails may be done again.
    project.declare(TABLE.replace("[01_second]", '[01_second]\nneeds = ["00_first"]'))
    project.notebook("01_second", write_cell("second.txt"), "a = 1\nraise ValueError('no luck')")
    failed = launch(project)
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-4:] == [
        "Notebook 01_second failed in cell In [4]:",
        "    a = 1",
        "    raise ValueError('no luck')",
        "ValueError: no luck",
    ]
    assert result(project, "second.txt") == "committed"
    assert result(project, "first.txt") == "new"
    assert (project.folder / "runs/failed/smoke/01_second.ipynb").is_file()

    before = executed_at(project, "00_first")
    project.notebook("01_second", write_cell("second.txt"))
    assert launch(project).returncode == 0
    assert executed_at(project, "00_first") == before
    assert result(project, "second.txt") == "new"


@pytest.mark.slow
def test_another_text_is_noticed_and_nothing_else(fake_project, monkeypatch):
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    fake_project.declare('[06_text]\nexperiments = ["mos_ptb"]\n')
    fake_project.notebook("06_text", "print('read')")

    def says(expected: str) -> None:
        started = launch(fake_project, "--experiments", "mos_ptb")
        assert started.returncode == 0, started.stderr
        assert expected in started.stderr

    says("Done in")
    says("Nothing to do")
    monkeypatch.setenv("PAPERLIB_DATA", str(fake_project.folder / "texts"))
    says("Done in")
    says("Nothing to do")
    (fake_project.folder / "texts" / "embedded").mkdir(parents=True)
    says("Done in")
    says("Nothing to do")


def test_killed_kernel_ends_it_within_seconds_whatever_else_runs(project):
    project.notebook("00_first", write_cell("first.txt"), SLEEP)
    project.notebook("01_second", "import os, time\ntime.sleep(3)\nos.kill(os.getpid(), 9)")
    started = time.monotonic()
    failed = launch(project)
    assert time.monotonic() - started < 60
    assert failed.returncode == 1
    last = failed.stderr.splitlines()[-5:]
    assert last[0] == "Notebook 01_second failed in cell In [3]:"
    assert last[-1].startswith("DeadKernelError: Kernel died")
    assert not (project.figures / "first.txt").exists()


def start(project, *options: str) -> subprocess.Popen:
    """The main job, left running once its first notebook sleeps."""
    project.notebook("00_first", write_cell("first.txt"), SLEEP)
    process = launch_job(project.folder, "--profile", "smoke", *options, background=True)
    wait_for(project.figures / "first.txt")
    return process


def wait_for(path) -> None:
    """Until a file appears."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM])
def test_interruption(project, interruption):
    process = start(project, "--cores", "1")
    second = launch(project)
    assert second.returncode == 1
    assert f"Another start (process {process.pid}) is at work" in second.stderr
    process.send_signal(interruption)
    _, output = process.communicate(timeout=40)
    assert process.returncode == 130
    last = output.splitlines()[-1]
    assert last == "Interrupted. What is finished stays; the next start goes on from there."
    assert not (project.figures / "first.txt").exists()


def test_killed_start_does_not_block_the_next(project):
    process = start(project, "--cores", "1")
    process.kill()
    process.wait()
    process.stderr.close()
    project.notebook("00_first", write_cell("first.txt", "again"))
    assert launch(project, "--only", "00").returncode == 0
    assert result(project, "first.txt") == "again"


@pytest.mark.parametrize(
    ("tool", "code", "choice"),
    [
        (None, 0, ("quick", "there is no CUDA GPU here")),
        ("nvidia-smi", 1, ("quick", "PyTorch finds no CUDA GPU here")),
        ("nvidia-smi", 0, ("medium", "there is a CUDA GPU, Model X")),
    ],
)
def test_profile_by_the_hardware(monkeypatch, tool, code, choice):
    answer = subprocess.CompletedProcess([], code, stdout="Model X\n")
    monkeypatch.setattr(shutil, "which", lambda _: tool)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert choose_profile() == choice


@pytest.mark.parametrize(
    ("experiments", "code", "message"),
    [
        ("doc_wikitext2", 130, "Profile paper (there is a GPU): "),
        ("doc_ptb,doc", 2, "profile paper has no experiment 'doc'; it has "),
    ],
)
def test_options_are_looked_up_in_the_profile_that_is_run(
    experiments, code, message, fake_project, monkeypatch, capsys
):
    assert "doc_wikitext2" not in settings.load("quick").corpora
    fake_project.declare("[00_first]")
    monkeypatch.setattr(paths, "PROJECT", fake_project.folder)
    monkeypatch.setattr(launcher, "choose_profile", lambda: ("paper", "there is a GPU"))
    monkeypatch.setattr(launcher, "_watch", lambda *_: 130)
    assert main(["run", "--experiments", experiments]) == code
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == (2 if code == 130 else 1)


def paperlib(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``python -m paperlib``."""
    command = [sys.executable, "-m", "paperlib", *arguments]
    variables = os.environ | environment
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)


def test_job_that_was_killed_leaves_a_report(tmp_path):
    report = tmp_path / "state/failure.txt"
    arguments = ("failed", "The training of seed 0", "--report", str(report), "--code")
    for code, text in [
        ("130", None),
        ("137", "The training of seed 0 was ended by signal 9; most often the memory ran out.\n"),
        ("3", "The training of seed 0 was ended by signal 9; most often the memory ran out.\n"),
    ]:
        assert paperlib(*arguments, code).returncode == 1
        assert (report.read_text(encoding="utf-8") if report.exists() else None) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--profile", "huge"), "There is no profile 'huge'; choose one of"),
        (("run", "--profile", "/a/own.toml"), "run by its name: copy /a/own.toml into"),
        (("notebook", "00", "--profile", "own.toml"), "run by its name: copy own.toml into"),
        (
            ("run", "--profile", "smoke", "--seeds", "0"),
            "a whole number from 1 to 1000, not 0",
        ),
        (("run", "--profile", "smoke", "--only", "77"), "There is no notebook '77'; choose one of"),
        (("notebook", "77", "--profile", "smoke"), "There is no notebook '77'; choose one of"),
    ],
)
def test_wrong_arguments_get_one_sentence(arguments, message):
    failed = paperlib(*arguments)
    assert failed.returncode == 2
    assert message in failed.stderr
    assert failed.stderr.count("\n") == 1


def test_training_that_fails_leaves_a_report(tmp_path):
    report, output = tmp_path / "failure.txt", tmp_path / "seed.json"
    (tmp_path / "runs").write_text("in the way", encoding="utf-8")
    arguments = ("--seed", "0", "--output", str(output), "--report", str(report))
    runs = str(tmp_path / "runs")
    failed = paperlib("synthetic", "--profile", "smoke", *arguments, PAPERLIB_RUNS=runs)
    assert failed.returncode == 1
    first, second = report.read_text(encoding="utf-8").splitlines()
    assert first == "The training of section 3, seed 0, failed."
    assert second.startswith("NotADirectoryError: ")
    assert not output.exists()


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("synthetic", ("--seed", "0")),
        ("experiment", ("--name", "mos_ptb")),
        ("beyond", ()),
        ("large", ("--processes", "2")),
        ("throughput", ()),
    ],
)
def test_a_place_for_results_that_is_none_is_noticed_before_the_work(
    command, options, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(processes, "run", None)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    runs = tmp_path / "runs"
    monkeypatch.setenv("PAPERLIB_RUNS", str(runs))
    for output, why in (
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "x.json", f"{tmp_path / 'file'} is no folder"),
        (tmp_path / "file" / "below" / "x.json", "Not a directory"),
    ):
        assert main([command, "--profile", "smoke", *options, "--output", str(output)]) == 2
        assert capsys.readouterr().err.splitlines() == [f"{output} cannot be written: {why}."]
    assert not runs.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("synthetic", "--profile", "smoke", "--output", "x", "--seed=-1"),
            "'-1' is no whole number",
        ),
        (
            ("synthetic", "--profile", "smoke", "--output", "x", "--seed", "9" * 20),
            f"'{'9' * 20}' is no whole number from 0 to 4294967295\n",
        ),
        (("run", "--profile", "smoke", "--cores", "0"), "'0' is no whole number of at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    failed = paperlib(*arguments)
    assert failed.returncode == 2
    assert message in failed.stderr


def test_relative_folders_are_made_absolute_once(tmp_path, monkeypatch):
    """Rules work in the project, notebooks in theirs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PAPERLIB_RUNS", "my runs")
    monkeypatch.setenv("PAPERLIB_DATA", "~/texts")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["profiles"]) == 0
    assert os.environ["PAPERLIB_RUNS"] == str(tmp_path / "my runs")
    assert os.environ["PAPERLIB_DATA"] == str(tmp_path / "home" / "texts")
    monkeypatch.setenv("PAPERLIB_RUNS", "")
    assert paths.runs() == paths.PROJECT / "runs"


def test_text_that_was_put_there_is_told_from_a_download(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    assert text_there_is("ptb") == ""
    folder = tmp_path / "data" / "ptb"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("one\n", encoding="utf-8")
    before = text_there_is("ptb")
    assert before.startswith(str(folder))
    os.utime(folder / "train.txt", (1, 1))
    assert text_there_is("ptb") != before
    alone = text_there_is("ptb")
    known = {alone}
    (folder / "valid.txt").write_text("two\n", encoding="utf-8")
    known.add(text_there_is("ptb"))
    # Older texts in its place, of another size or not, as a copy that keeps times puts them there.
    for text, time_of_change in (("three\n", 1), ("other\n", 2)):
        (folder / "valid.txt").write_text(text, encoding="utf-8")
        os.utime(folder / "valid.txt", (time_of_change, time_of_change))
        known.add(text_there_is("ptb"))
    (folder / "valid.txt").rename(folder / "test.txt")
    known.add(text_there_is("ptb"))
    assert len(known) == 5
    (folder / ".#test.txt").symlink_to("nothing")
    assert text_there_is("ptb") in known
    (folder / "test.txt").unlink()
    assert text_there_is("ptb") == alone
    (folder / paths.DOWNLOADED).touch()
    assert text_there_is("ptb") == ""
    given = tmp_path / "given" / "ptb"
    given.mkdir(parents=True)
    monkeypatch.setenv("PAPERLIB_DATA", str(tmp_path / "given"))
    assert text_there_is("ptb").startswith(str(given))


def test_a_text_in_the_project_is_watched_too(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.delenv("PAPERLIB_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text_there_is("my_texts") == text_there_is("~/my_texts") == ""
    (tmp_path / "my_texts").mkdir()
    for name in ("my_texts", "~/my_texts"):
        assert text_there_is(name).startswith(f"{tmp_path / 'my_texts'}, ")


def test_lists():
    assert "smoke" in paperlib("profiles").stdout
    assert "03_table_1" in paperlib("notebooks").stdout
