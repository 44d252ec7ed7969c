"""What all tests share: nothing they do touches the user's own ``runs/`` or ``figures/``."""

import json
import os
import subprocess
import sys
from pathlib import Path

# Before torch is imported: workers side by side, each with all cores, would slow each other down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest

from paperlib import hardware

CHECKOUT = Path(__file__).parents[1]

needs_bfloat16 = pytest.mark.skipif(
    not hardware.has_bfloat16(), reason="the hardware has no LSTM in bfloat16"
)


@pytest.fixture(autouse=True, scope="session")
def runs_folder(tmp_path_factory):
    """One folder of trainings for the session, shared by all of its worker processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "runs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_RUNS", str(folder))
        yield folder


def pytest_collection_modifyitems(items):
    """Start with the longest tests, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class FakeProject:
    """A project of throw-away notebooks, for tests of what runs them."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "notebooks").mkdir(parents=True)
        (folder / "workflow").mkdir()

    def declare(self, table: str) -> None:
        """Write ``workflow/notebooks.toml``."""
        (self.folder / "workflow/notebooks.toml").write_text(table, encoding="utf-8")

    def notebook(self, name: str, *cells: str) -> None:
        """Write a notebook of these code cells after its title and parameters."""
        markdown = {"cell_type": "markdown", "metadata": {}, "source": f"# Title of {name}\n"}
        parameters = {"tags": ["parameters"]}
        code = [('profile = "quick"\nseeds = None', parameters), *((cell, {}) for cell in cells)]
        content = {
            "cells": [
                markdown | {"id": "title"},
                *(
                    {
                        "cell_type": "code",
                        "execution_count": None,
                        "id": f"cell{number}",
                        "metadata": metadata,
                        "outputs": [],
                        "source": source,
                    }
                    for number, (source, metadata) in enumerate(code)
                ),
            ],
            "metadata": {"kernelspec": {"name": "paperlib", "display_name": "paperlib"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        path = self.folder / "notebooks" / f"{name}.ipynb"
        path.write_text(json.dumps(content), encoding="utf-8")


WRITE = """from paperlib import paths
folder = paths.figures(profile)
folder.mkdir(parents=True, exist_ok=True)
(folder / "{name}").write_text("{text}")"""


def write_cell(name: str, text: str = "new") -> str:
    """Source of a cell that writes ``text`` to the result ``name``."""
    return WRITE.format(name=name, text=text)


@pytest.fixture
def fake_project(tmp_path) -> FakeProject:
    """An empty project in a folder whose name has a space."""
    return FakeProject(tmp_path / "a project")


def stops_after(task, steps: int):
    """``task``, which raises as Ctrl-C does before more than ``steps`` steps are done."""
    step, left = task.backward, iter(range(steps))

    def backward(batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return step(batch)

    task.backward = backward
    return task


def launch_job(project: Path, *options: str, background: bool = False):
    """``python -m paperlib run`` in ``project``: its result, or its process in the background."""
    command = [sys.executable, "-m", "paperlib", "run", *options]
    environment = os.environ | {"PAPERLIB_PROJECT": str(project)}
    if background:
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
