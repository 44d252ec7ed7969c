"""``run_all.sh``: its options, and the set-up, with a Python that only writes down its tasks."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import CHECKOUT

from paperlib import notebooks, profile_files

STUB = """#!/usr/bin/env bash
# Stands in for Python: answers questions, writes down tasks, and makes environments of itself.
case "$1 ${{2-}}" in
    -c* | "--version "*) exec {python} "$@" ;;
    "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
esac
printf '%s\\n' "${{*:2}}" >>{log}
printf '%s\\n' "${{PAPERLIB_RUNS-}} ${{PAPERLIB_DATA-}}" >{log}.folders
if [[ "$1 ${{2-}}" == "-m ${{FAILING:-nothing}}" ]]; then
    echo "ERROR: as asked"
    exit 7
fi
"""


class Copy:
    """A copy of what ``run_all.sh`` needs, in a folder with a space, and a Python that pretends."""

    def __init__(self, folder: Path):
        self.folder = folder / "a copy"
        self.log = folder / "tasks"
        self.python = folder / "stub"
        self.folder.mkdir()
        for name in ("run_all.sh", "requirements.txt", "pyproject.toml", "notebooks", "workflow"):
            (self.folder / name).symlink_to(CHECKOUT / name)
        for name in ("run_all.sh", "requirements.txt"):
            (self.folder / name).unlink()
            shutil.copy(CHECKOUT / name, self.folder / name)
        shutil.copytree(CHECKOUT / "paperlib", self.folder / "paperlib")
        real, log = shlex.quote(sys.executable), shlex.quote(str(self.log))
        self.python.write_text(STUB.format(python=real, log=log), encoding="utf-8")
        self.python.chmod(0o755)

    def run(self, *options: str, script=None, **environment: str) -> subprocess.CompletedProcess:
        """Start it, or a copy of the ``script``, from another folder."""
        variables = os.environ | {"PYTHON": str(self.python)} | environment
        variables.pop("CONDA_DEFAULT_ENV", None)
        return subprocess.run(
            [script or self.folder / "run_all.sh", *options],
            cwd=self.folder.parent,
            env=variables,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def tasks(self) -> list[str]:
        """What Python was asked to do since the last question, without the first ``-m``."""
        lines = self.log.read_text(encoding="utf-8").splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


SET_UP = ["venv", "pip", "ipykernel"]


def names(tasks: list[str]) -> list[str]:
    """First words."""
    return [task.split()[0] for task in tasks]


@pytest.fixture
def copy(tmp_path) -> Copy:
    """A fresh copy without an environment."""
    return Copy(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bogus"], "there is no option '--bogus'; see --help."),
        (["03"], "there is no option '03'; see --help."),
        (["--profile", "huge"], "there is no profile 'huge'; choose one of {profiles}."),
        (["--profile", "../profiles/smoke"], "there is no profile '../profiles/smoke'; choose one"),
        (["--profile"], "--profile needs a value; see --help."),
        (["--profile", "--force"], "--profile needs a value; see --help."),
        (["--only", "77"], "there is no notebook '77'; --list shows their numbers."),
        (["--only", "*"], "there is no notebook '*'; --list shows their numbers."),
        (["--only"], "--only needs a value; see --help."),
        (["--seeds", "0"], "--seeds needs a whole number from 1 on, not '0'."),
        (["--seeds", "-1"], "--seeds needs a whole number from 1 on, not '-1'."),
        (["--cores", "two"], "--cores needs a whole number from 1 on, not 'two'."),
        (["--cores", "1.5"], "--cores needs a whole number from 1 on, not '1.5'."),
        (["--cores"], "--cores needs a value; see --help."),
        (["--profile", "smoke", "--only", "03", "--sedes", "2"], "there is no option '--sedes'"),
    ],
)
def test_wrong_options_get_one_sentence_before_anything_is_installed(copy, options, message):
    result = copy.run(*options)
    assert result.returncode == 2
    assert message.format(profiles=", ".join(profile_files.names())) in result.stderr
    assert result.stderr.count("\n") == 1
    assert copy.tasks() == []
    assert not (copy.folder / ".venv").exists()


def test_help(copy):
    result = copy.run("--help")
    assert result.returncode == 0
    for option in (
        "profile",
        "only",
        "seeds",
        "experiments",
        "cores",
        "force",
        "list",
        "lab",
        "test",
        "help",
    ):
        assert f"--{option}" in result.stdout
    for profile in profile_files.names():
        assert re.search(rf"--profile NAME .*\b{profile}\b", result.stdout)
    assert copy.tasks() == []


def test_list_needs_no_environment(copy):
    copy.python.unlink()
    copy.python.symlink_to(sys.executable)
    result = copy.run("--list")
    assert (result.returncode, result.stderr) == (0, "")
    positions = [result.stdout.index(name) for name in notebooks.declared()]
    assert positions == sorted(positions)
    assert notebooks.find("03").title() in result.stdout
    assert "table1" in result.stdout
    assert not (copy.folder / ".venv").exists()


def test_first_start_sets_up_and_the_second_does_not(copy):
    result = copy.run()
    assert result.returncode == 0
    assert "Setting up .venv" in result.stderr
    tasks = copy.tasks()
    assert names(tasks) == [*SET_UP, "paperlib"]
    assert "-r requirements.txt -e ." in tasks[1]
    assert "--sys-prefix --name paperlib" in tasks[2]
    assert tasks[3] == "paperlib run"
    result = copy.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert copy.tasks() == ["paperlib run"]


def test_options_are_passed_on(copy):
    copy.run("--profile", "smoke", "--only", "03", "--seeds", "2", "--cores", "1", "--force")
    expected = "paperlib run --profile smoke --only 03 --seeds 2 --cores 1 --force"
    assert copy.tasks()[-1] == expected


def test_tests_and_laboratory_use_the_same_environment(copy):
    copy.run("--cores", "3", "--test", "-k", "one and two", "--seeds")
    assert names(tasks := copy.tasks()) == [*SET_UP, "pytest"]
    assert tasks[-1] == "pytest -n 3 -k one and two --seeds"
    copy.run("--lab")
    assert copy.tasks() == ["jupyterlab"]


def test_changed_requirements_update_the_environment_in_place(copy):
    copy.run()
    copy.tasks()
    with open(copy.folder / "requirements.txt", "a", encoding="utf-8") as file:
        file.write("# one more\n")
    assert copy.run().returncode == 0
    assert names(copy.tasks()) == ["pip", "ipykernel", "paperlib"]


def test_moved_environment_is_made_anew(copy):
    copy.run()
    copy.tasks()
    copy.folder = copy.folder.rename(copy.folder.with_name("moved"))
    assert copy.run().returncode == 0
    assert names(copy.tasks()) == [*SET_UP, "paperlib"]


@pytest.mark.parametrize("step", SET_UP)
def test_set_up_that_failed_is_made_anew(copy, step):
    result = copy.run(FAILING=step)
    assert result.returncode != 0
    assert "paperlib" not in names(copy.tasks())
    if step == "pip":
        assert "run_all.sh: the set-up failed; runs/setup.log has all of what pip said." in (
            result.stderr
        )
        assert "ERROR: as asked" in result.stderr
    assert copy.run().returncode == 0
    assert names(copy.tasks()) == [*SET_UP, "paperlib"]


def test_no_python(copy):
    result = copy.run(PYTHON=str(copy.folder / "nothing"))
    assert result.returncode == 1
    assert "no Python 3.11 or newer" in result.stderr


def test_exit_code_is_that_of_the_job(copy):
    copy.run()
    assert copy.run(FAILING="paperlib").returncode == 7


def test_linked_script_finds_its_project(copy):
    link = copy.folder.parent / "link"
    link.symlink_to(copy.folder)
    assert subprocess.run([link / "run_all.sh", "--help"], capture_output=True).returncode == 0


def test_copy_of_the_script_elsewhere_says_so_or_finds_the_project_by_slurm(copy):
    """Slurm runs a copy of a batch script, and names the folder that it was submitted in."""
    script = copy.folder.parent / "spool" / "slurm_script"
    script.parent.mkdir()
    shutil.copy(copy.folder / "run_all.sh", script)
    for environment in ({}, {"SLURM_SUBMIT_DIR": str(script.parent)}):
        lost = copy.run("--profile", "smoke", script=script, **environment)
        assert lost.returncode == 1
        assert f"run_all.sh: there is no paperlib/ beside it, in {script.parent}" in lost.stderr
        assert lost.stderr.count("\n") == 1
    assert not copy.tasks()
    found = copy.run("--profile", "smoke", script=script, SLURM_SUBMIT_DIR=str(copy.folder))
    assert found.returncode == 0
    assert copy.tasks()[-1] == "paperlib run --profile smoke"


def test_folders_are_relative_to_where_the_user_is(copy):
    copy.run(PAPERLIB_RUNS="my runs", PAPERLIB_DATA="/texts")
    folders = copy.log.with_name("tasks.folders")
    assert folders.read_text(encoding="utf-8") == f"{copy.folder.parent}/my runs /texts\n"
    copy.run(PAPERLIB_RUNS="", PAPERLIB_DATA="../texts")
    assert folders.read_text(encoding="utf-8") == f" {copy.folder.parent}/../texts\n"
