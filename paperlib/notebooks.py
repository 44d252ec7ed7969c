"""The notebooks: which there are, and how one is executed without a person.

``workflow/notebooks.toml`` declares them. When each runs is the workflow's business (see the
``Snakefile``); here one of them is executed by papermill, in a fresh kernel of this very Python.
Results that lie there already stay as they are until the notebook has run through.
"""

import json
import os
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from paperlib import paths
from paperlib.files import write_atomically, write_text

if TYPE_CHECKING:  # this module has to work before anything is installed
    from paperlib.settings import Profile


FOR_USERS = (
    "CorpusError",
    "CorpusMissing",
    "TextError",
    "DamagedFile",
    "HardwareError",
    "TrainingError",
    "ModelError",
    "SettingsError",
    "CheckpointError",
)
"""Names of the errors whose message is one sentence for the user: no trace explains more. Of what
failed in a kernel or another process, no more than the name is known."""


STARTS = 3
"""How often a kernel is started that does not answer: another program may have taken a port that
was free when the kernel was given it. Most often the second start goes well."""


class UsageError(Exception):
    """Something was asked for that is not there; the message is one sentence for the user."""


class NotebookError(Exception):
    """A notebook failed; the message names it, the cell and the error, for the user.

    ``traceback`` is the long form, empty where the kernel left none.
    """

    def __init__(self, message: str, traceback: str = ""):
        super().__init__(message)
        self.traceback = traceback


@dataclass(frozen=True)
class Notebook:
    """One entry of ``workflow/notebooks.toml``."""

    name: str
    trained: Literal["none", "first", "all"] = "none"
    beyond: bool = False
    large: bool = False
    long: bool = False
    experiments: tuple[str, ...] = ()
    may_read: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def makes(self) -> list[str]:
        """Names of all files that it writes."""
        figures = [f"{name}.{kind}" for name in self.figures for kind in ("png", "pdf", "json")]
        tables = [f"{name}.{kind}" for name in self.tables for kind in ("md", "csv")]
        return [*tables, *figures, *self.files]

    @property
    def source(self) -> Path:
        """The notebook that people read and change, without outputs."""
        return paths.NOTEBOOKS / f"{self.name}.ipynb"

    def executed(self, profile: str) -> Path:
        """Its executed copy."""
        return paths.figures(profile) / "notebooks" / f"{self.name}.ipynb"

    def products(self, profile: str) -> list[Path]:
        """The results it writes."""
        return [paths.figures(profile) / name for name in self.makes]

    def reads(self, experiment: str) -> bool:
        """Whether it reads what this experiment of section 4 comes to."""
        patterns = (*self.experiments, *self.may_read)
        return any(fnmatch(experiment, pattern) for pattern in patterns)

    def has_part_in(self, plan: "Profile") -> bool:
        """Whether there is anything to do for it in what ``plan`` runs."""
        if (self.beyond and plan.synthetic.beyond is None) or (self.large and plan.large is None):
            return False
        return not self.experiments or any(map(self.reads, plan.corpora))

    def title(self) -> str:
        """The first heading, or nothing where there is none or no such notebook."""
        if not self.source.is_file():
            return ""
        cells = json.loads(self.source.read_text(encoding="utf-8"))["cells"]
        lines = "".join(line for cell in cells for line in [*cell["source"], "\n"]).splitlines()
        return next((line[2:].strip() for line in lines if line.startswith("# ")), "")


def declared() -> dict[str, Notebook]:
    """All notebooks in their order, by name; patterns in ``needs`` resolved."""
    table = tomllib.loads((paths.PROJECT / "workflow/notebooks.toml").read_text(encoding="utf-8"))
    notebooks: dict[str, Notebook] = {}
    for name, entry in table.items():
        patterns = entry.pop("needs", [])
        needs = tuple(other for other in notebooks if any(fnmatch(other, p) for p in patterns))
        notebooks[name] = Notebook(name, needs=needs, **entry)
    return notebooks


def planned(plan: "Profile") -> dict[str, Notebook]:
    """Those of :func:`declared` that have a part in what ``plan`` runs."""
    return {name: one for name, one in declared().items() if one.has_part_in(plan)}


def find(name: str) -> Notebook:
    """The notebook of this full name or number, such as ``03``."""
    for notebook in declared().values():
        if name in (notebook.name, notebook.name.split("_")[0]):
            return notebook
    raise UsageError(f"There is no notebook {name!r}; choose one of {', '.join(declared())}.")


def run(
    notebook: Notebook, profile: str, seeds: int | None = None, experiments: str | None = None
) -> Path:
    """Execute ``notebook`` with these parameters and return the path of its executed copy.

    Raises :class:`NotebookError` where a cell fails, the kernel dies, or a result that the
    notebook should make was not written. What it did up to there then lies in ``runs/failed``.
    """
    started = time.time()
    executed, products = notebook.executed(profile), notebook.products(profile)
    attempt = paths.PROJECT / "runs" / "failed" / profile / executed.name
    attempt.parent.mkdir(parents=True, exist_ok=True)
    attempt.unlink(missing_ok=True)
    with restored_on_error(products):
        parameters = {"profile": profile, "seeds": seeds}
        if experiments is not None:
            parameters["experiments"] = experiments
        _execute(notebook, attempt, parameters)
        # File systems keep times at a granularity of up to two seconds.
        fresh = [path.is_file() and path.stat().st_mtime > started - 2 for path in products]
        missing = [
            path.name for path, is_fresh in zip(products, fresh, strict=True) if not is_fresh
        ]
        if missing:
            raise NotebookError(
                f"Notebook {notebook.name} ran through but did not write {', '.join(missing)}."
            )
        _publish(attempt, executed)
    return executed


@contextmanager
def restored_on_error(files: list[Path]) -> Iterator[None]:
    """Leave ``files`` as they were before if the block is left by an error or an interruption."""
    before = {file: file.read_bytes() if file.is_file() else None for file in files}
    try:
        yield
    except BaseException:
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            elif not file.is_file() or file.read_bytes() != content:
                write_atomically(file, lambda path, old=content: path.write_bytes(old))
        raise


def _execute(notebook: Notebook, attempt: Path, parameters: dict) -> None:
    """Run the notebook; what fails is told in a :class:`NotebookError`."""
    from papermill.exceptions import PapermillExecutionError

    try:
        _papermill(notebook, attempt, parameters)
    except PapermillExecutionError as error:
        if error.ename in FOR_USERS:
            raise NotebookError(f"Notebook {notebook.name}: {error.evalue}.") from None
        what = f"{error.ename}: {error.evalue}".strip().removesuffix(":")
        message = _message(notebook, error.exec_count, error.source, what, attempt)
        raise NotebookError(message, str(error).strip()) from None
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        if type(error).__name__ == "DeadKernelError":
            what += " (its process was killed or crashed; most often the memory ran out)"
        number, source = _last_cell(attempt)
        raise NotebookError(_message(notebook, number, source, what, attempt)) from error


def _papermill(notebook: Notebook, attempt: Path, parameters: dict) -> None:
    """Run papermill; the notebook as far as it got is saved after each cell."""
    import papermill

    # The kernel that this Python brings along, not one of the same name in the user's folders.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # Sliders are for people; executing one headless has been seen to wait for ever.
    os.environ["PAPERLIB_HEADLESS"] = "1"
    for starts_left in reversed(range(STARTS)):
        try:
            papermill.execute_notebook(
                notebook.source,
                attempt,
                parameters,
                kernel_name="python3",
                language="python",
                cwd=paths.NOTEBOOKS,
                progress_bar={"desc": notebook.name, "dynamic_ncols": True},
                record_timing=False,
                extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
            )
            return
        except RuntimeError:  # also a kernel that does not answer, or dies before it does
            in_a_cell, _ = _last_cell(attempt)
            if in_a_cell or not starts_left:
                raise


def _message(notebook: Notebook, number: int, source: str, error: str, attempt: Path) -> str:
    if not number:
        return f"Notebook {notebook.name} did not start.\n{error}"
    lines = source.strip().splitlines()
    shown = [f"    {line}" for line in lines[:3]] + ["    …"] * (len(lines) > 3)
    return "\n".join(
        [
            f"As far as it got, the notebook lies in {attempt.relative_to(paths.PROJECT)}",
            f"Notebook {notebook.name} failed in cell In [{number}]:",
            *shown,
            error,
        ]
    )


def _last_cell(attempt: Path) -> tuple[int, str]:
    """Number among the code cells, and source, of the last cell that was started; or 0."""
    if not attempt.is_file():
        return 0, ""
    started = [
        "".join(cell["source"])
        for cell in json.loads(attempt.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code" and cell["metadata"]["papermill"]["start_time"]
    ]
    started = [source for source in started if source.strip()]
    return (len(started), started[-1]) if started else (0, "")


def _publish(attempt: Path, executed: Path) -> None:
    """Move a successful attempt to the results, without dates and folders of this machine."""
    content = json.loads(attempt.read_text(encoding="utf-8"))
    for cell in content["cells"]:
        cell["metadata"].pop("papermill", None)
    papermill = content["metadata"]["papermill"]
    kept = {key: papermill[key] for key in ("parameters", "version")}
    content["metadata"]["papermill"] = kept | {"duration": round(papermill["duration"], 1)}
    text = json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True)
    write_text(executed, text + "\n")
    attempt.unlink()
