"""Folders of the project, as absolute paths, so that code runs from any working directory."""

import os
from pathlib import Path

PROJECT = Path(os.environ.get("PAPERLIB_PROJECT", Path(__file__).parents[1])).resolve()
"""The checkout. ``PAPERLIB_PROJECT`` moves everything that is written, for tests."""

PROFILES = Path(__file__).parent / "profiles"
"""One declarative file a profile."""

NOTEBOOKS = PROJECT / "notebooks"
"""Source notebooks, without outputs."""


def figures(profile: str) -> Path:
    """Committed results of ``profile``: tables, figures, executed notebooks, provenance."""
    return PROJECT / "figures" / profile


def runs() -> Path:
    """Intermediate state (checkpoints, curves), ignored by git. ``PAPERLIB_RUNS`` moves it."""
    return Path(os.environ.get("PAPERLIB_RUNS", PROJECT / "runs")).resolve()
