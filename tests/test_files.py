"""Files that are written whole or not at all, by code that needs nothing installed."""

import subprocess
import sys

import pytest

from paperlib import files, jobs


def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"epoch": 1})

    def fails(unfinished):
        unfinished.write_text("half", encoding="utf-8")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        files.write_atomically(path, fails)
    assert files.load_json(path) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_last_words_that_cannot_be_written_leave_nothing_half_done(tmp_path):
    report = tmp_path / "report.txt"
    report.mkdir()
    with pytest.raises(IsADirectoryError):
        jobs.fail("It failed.", report)
    assert list(tmp_path.iterdir()) == [report]


@pytest.mark.parametrize("module", ["files", "jobs", "cli"])
def test_what_starts_jobs_and_lists_notebooks_needs_nothing_installed(module):
    code = f"import paperlib.{module}"
    # Without what is installed, and from the folder of the library.
    command = [sys.executable, "-S", "-c", code]
    subprocess.run(command, cwd=files.__file__.rpartition("/paperlib/")[0], check=True)
