"""Running one notebook: results, what a failure says, and that it leaves old results alone."""

import json
import os
import time

import pytest
from conftest import write_cell

from paperlib import notebooks, paths
from paperlib.notebooks import NotebookError, UsageError

TABLE = """
[00_first]
[01_second]
trained = "first"
tables = ["numbers"]
files = ["more.txt"]
[99_last]
needs = ["0*"]
figures = ["picture"]
"""


@pytest.fixture
def project(fake_project, monkeypatch):
    """A project of three declared notebooks; results are written to it."""
    monkeypatch.setattr(paths, "PROJECT", fake_project.folder)
    monkeypatch.setattr(paths, "NOTEBOOKS", fake_project.folder / "notebooks")
    # Kernels are other processes.
    monkeypatch.setenv("PAPERLIB_PROJECT", str(fake_project.folder))
    fake_project.declare(TABLE)
    return fake_project


def run_second(project, *cells: str):
    """Run ``01_second`` with these cells."""
    project.notebook("01_second", *cells)
    return notebooks.run(notebooks.find("01"), "smoke", seeds=2)


WRITE_ALL = [write_cell(name) for name in ("numbers.md", "numbers.csv", "more.txt")]


def test_table_of_notebooks(project):
    first, second, last = notebooks.declared().values()
    assert last.needs == (first.name, second.name)
    assert last.makes == ["picture.png", "picture.pdf", "picture.json"]
    assert second.makes == ["numbers.md", "numbers.csv", "more.txt"]
    assert (first.trained, second.trained) == ("none", "first")


def test_titles(project):
    project.notebook("00_first")
    assert notebooks.find("00_first").title() == "Title of 00_first"
    assert notebooks.find("99").title() == ""


def test_unknown_notebook(project):
    with pytest.raises(UsageError, match="no notebook '77'; choose one of 00_first, 01_second"):
        notebooks.find("77")


def test_executed_copy_has_outputs_and_parameters_but_nothing_of_this_machine(project):
    executed = run_second(project, "print(profile, seeds)", *WRITE_ALL)
    text = executed.read_text(encoding="utf-8")
    assert '"smoke 2\\n"' in text
    assert str(project.folder) not in text
    content = json.loads(text)
    parameters = {"profile": "smoke", "seeds": 2}
    assert content["metadata"]["papermill"]["parameters"] == parameters
    assert all("papermill" not in cell["metadata"] for cell in content["cells"])
    assert not list((project.folder / "runs/failed").rglob("*.ipynb"))


def test_an_error_meant_for_users_is_its_sentence_alone(project):
    with pytest.raises(NotebookError) as caught:
        run_second(project, "class CorpusError(Exception): ...\nraise CorpusError('no text')")
    assert str(caught.value) == "Notebook 01_second: no text."
    assert not caught.value.traceback


def test_failing_cell(project):
    with pytest.raises(NotebookError) as caught:
        run_second(project, "a = 1", "numbers = {}\nnumbers['b']")
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("runs/failed/smoke/01_second.ipynb")
    assert lines[1:] == [
        "Notebook 01_second failed in cell In [4]:",
        "    numbers = {}",
        "    numbers['b']",
        "KeyError: 'b'",
    ]
    assert "----> 2 numbers['b']" in caught.value.traceback
    assert (project.folder / "runs/failed/smoke/01_second.ipynb").is_file()
    assert not notebooks.find("01").executed("smoke").exists()


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "os._exit(0)"])
def test_dead_kernel_ends_within_seconds(project, end):
    started = time.monotonic()
    # A child that outlives its kernel must not keep anything open either.
    child = "import os, subprocess\nchild = subprocess.Popen(['sleep', '30'])\n"
    with pytest.raises(NotebookError) as caught:
        run_second(project, "a = 1", child + end + "\na = 2\na = 3", "a = 4")
    assert time.monotonic() - started < 20
    lines = str(caught.value).splitlines()
    assert lines[1] == "Notebook 01_second failed in cell In [4]:"
    assert lines[-2] == "    …"
    assert lines[-1].startswith("DeadKernelError: Kernel died (its process was killed")


DIES_AT_ITS_START = """
import os, pathlib, sys
starts = pathlib.Path({starts!r})
if "ipykernel_launcher" in sys.orig_argv:
    number = len(starts.read_text()) if starts.exists() else 0
    starts.write_text("." * (number + 1))
    if number < {deaths}:
        os._exit(1)
"""


@pytest.mark.parametrize("deaths", [1, 9])
def test_a_kernel_that_dies_at_its_start_is_started_again(project, tmp_path, monkeypatch, deaths):
    starts = tmp_path / "starts"
    code = DIES_AT_ITS_START.format(starts=str(starts), deaths=deaths)
    (tmp_path / "sitecustomize.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    if deaths < notebooks.STARTS:
        assert run_second(project, *WRITE_ALL).is_file()
    else:
        with pytest.raises(NotebookError, match="01_second did not start") as caught:
            run_second(project, *WRITE_ALL)
        assert "Kernel died" in str(caught.value)
    assert len(starts.read_text()) == min(deaths + 1, notebooks.STARTS)


def test_missing_result(project):
    with pytest.raises(NotebookError, match=r"01_second ran through but did not write more\.txt"):
        run_second(project, *WRITE_ALL[:2])


def test_result_of_an_earlier_run_does_not_count(project):
    executed = run_second(project, *WRITE_ALL)
    result = paths.figures("smoke") / "more.txt"
    os.utime(result, (0, 0))
    before = executed.read_bytes()
    with pytest.raises(NotebookError, match=r"did not write more\.txt"):
        run_second(project, *WRITE_ALL[:2])
    assert executed.read_bytes() == before


def test_notebook_that_is_not_there(project):
    with pytest.raises(NotebookError, match="Notebook 01_second did not start"):
        notebooks.run(notebooks.find("01"), "smoke")


def test_a_copy_that_cannot_be_put_there_leaves_nothing_half_done(project):
    executed = notebooks.find("01").executed("smoke")
    executed.mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        run_second(project, *WRITE_ALL)
    assert list(executed.parent.iterdir()) == [executed]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_results_are_restored(tmp_path, error):
    changed, gone, new, same = (tmp_path / name for name in ("changed", "gone", "new", "same"))
    for path in (changed, gone, same):
        path.write_text("old", encoding="utf-8")
    unchanged_since = same.stat().st_mtime_ns

    def work():
        with notebooks.restored_on_error([changed, gone, new, same]):
            changed.write_text("new", encoding="utf-8")
            new.write_text("new", encoding="utf-8")
            gone.unlink()
            raise error

    with pytest.raises(error):
        work()
    assert [path.read_text(encoding="utf-8") for path in (changed, gone)] == ["old", "old"]
    assert not new.exists()
    assert same.stat().st_mtime_ns == unchanged_since


def test_results_are_restored_whole_or_not_at_all(tmp_path, monkeypatch):
    result = tmp_path / "result"
    result.write_text("old", encoding="utf-8")

    def no_room(path, content):
        path.write_text("half", encoding="utf-8")
        raise OSError("the disk is full")

    def work():
        with notebooks.restored_on_error([result]):
            result.write_text("new", encoding="utf-8")
            monkeypatch.setattr(type(result), "write_bytes", no_room)
            raise ValueError

    with pytest.raises(OSError, match="the disk is full"):
        work()
    assert result.read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [result]


def test_results_stay_without_an_error(tmp_path):
    result = tmp_path / "result"
    with notebooks.restored_on_error([result]):
        result.write_text("new", encoding="utf-8")
    assert result.read_text(encoding="utf-8") == "new"
