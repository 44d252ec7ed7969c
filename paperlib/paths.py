"""Folders of the project, as absolute paths, so that code runs from any working directory."""

import os
import subprocess
from pathlib import Path

PROJECT = Path(os.environ.get("PAPERLIB_PROJECT", Path(__file__).parents[1])).resolve()
"""The checkout. ``PAPERLIB_PROJECT`` moves everything that is written, for tests."""

PROFILES = Path(__file__).parent / "profiles"
"""One declarative file a profile."""

NOTEBOOKS = PROJECT / "notebooks"
"""Source notebooks, without outputs."""

DOWNLOADED = ".downloaded"
"""Name of the mark in a folder of ``data/`` that nobody put there."""


def in_project(path: str) -> Path:
    """Where a path in a profile leads: a relative one begins in the project, for notebooks work in
    another folder than the rest."""
    return PROJECT / Path(path).expanduser()


def figures(profile: str) -> Path:
    """Committed results of ``profile``: tables, figures, executed notebooks, provenance."""
    return PROJECT / "figures" / profile


def runs() -> Path:
    """Intermediate state (checkpoints, curves), ignored by git. ``PAPERLIB_RUNS`` moves it."""
    return Path(os.environ.get("PAPERLIB_RUNS") or PROJECT / "runs").expanduser().resolve()


def data() -> list[Path]:
    """Folders where texts are looked for, in this order: what ``PAPERLIB_DATA`` names, if anything,
    whether it is there or not, and the project's own."""
    given = os.environ.get("PAPERLIB_DATA")
    return [*([Path(given).expanduser()] if given else []), PROJECT / "data"]


def settle() -> None:
    """Make the folders that environment variables name absolute, for all that is started from here:
    some of it works in another folder."""
    for variable in ("PAPERLIB_RUNS", "PAPERLIB_DATA"):
        if given := os.environ.get(variable):
            os.environ[variable] = os.path.abspath(os.path.expanduser(given))


def commit() -> str:
    """The checkout's commit, with a ``+`` for uncommitted changes outside ``figures/``."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":(exclude)figures")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
