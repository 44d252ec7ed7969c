"""A whole run: how long it takes, from nothing and again, and where its time goes.

The latter is read from the provenance that the committed run itself wrote.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from paperlib import hardware, paths
from paperlib.threads import cores

KINDS = {
    "language_model": "language models",
    "second_run": "language models",
    "discriminator": "discriminators",
    "finetuning": "fine-tuning",
    "cross_entropy": "fine-tuning",
    "cross_entropy_dropout": "fine-tuning",
}
"""Kinds of training, by what the names of their stages end in."""


STUDIES = {"beyond": "beyond the paper", "large": "section 4.3"}
"""Names of studies that say too little by themselves."""


HARDWARE = ["processor", "instructions", "cores"]
"""What of the hardware decides how long a run takes."""


class RunError(RuntimeError):
    """The run failed; the message is one sentence for the user."""


def stages(profile: str) -> pd.DataFrame:
    """Seconds of each study's trainings of a kind, and of each notebook, longest first."""
    folder = paths.figures(profile)
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    rows = [
        {
            "stage": f"{_study(entry['study'])}: {_kind(entry['stage'])}",
            "what": "training",
            "trainings": 1,
            "seconds": entry["seconds"],
        }
        for entry in record["trainings"]
        if not entry["training"].startswith("search_")
    ]
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        papermill = json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]
        if (seconds := papermill.get("duration")) is not None:
            rows.append(
                {"stage": path.stem, "what": "notebook", "trainings": 0, "seconds": seconds}
            )
    table = pd.DataFrame(rows).groupby(["stage", "what"], as_index=False, sort=False).sum()
    table["share"] = table["seconds"] / table["seconds"].sum()
    return table.sort_values("seconds", ascending=False, ignore_index=True)


def _study(name: str) -> str:
    return f"section 3, {name}" if name.startswith("seed") else STUDIES.get(name, name)


def _kind(stage: str) -> str:
    name = stage.split("/")[0]
    return next(title for ending, title in KINDS.items() if name.endswith(ending))


def for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`stages`, and its sum."""
    total = {"stage": "all", "what": "", "trainings": table["trainings"].sum()}
    total |= {"seconds": table["seconds"].sum(), "share": 1.0}
    rows = pd.concat([table, pd.DataFrame([total])], ignore_index=True)
    return pd.DataFrame(
        {
            "stage": rows["stage"],
            "what": rows["what"],
            "trainings": rows["trainings"].map(lambda number: str(number) if number else ""),
            "seconds": rows["seconds"].map("{:.1f}".format),
            "share": rows["share"].map("{:.0%}".format),
        }
    )


def draw(table: pd.DataFrame, profile: str) -> Figure:
    """Bars by stage."""
    figure, axes = plt.subplots(figsize=(8, 0.24 * len(table) + 1), layout="constrained")
    colours = {"training": "#0072B2", "notebook": "#E69F00"}
    for what, part in table.groupby("what"):
        bars = axes.barh(part.index, part["seconds"], color=colours[what], label=what)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axes.set_yticks(range(len(table)), table["stage"], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("seconds on one core")
    axes.set_title(f"Profile {profile}: {table['seconds'].sum() / 60:.1f} minutes of one core")
    axes.margins(x=0.08, y=0.01)  # the longest bar's number fits
    axes.legend()
    return figure


def measure(profile: str) -> pd.DataFrame:
    """Wall time of a run in a clone of the checkout's last commit: from nothing, and again.

    Both after installation, on all cores that this process may use. Raises :class:`RunError`.
    """
    commit = paths.commit().removesuffix("+")
    with TemporaryDirectory() as folder:
        checkout, runs = Path(folder) / "checkout", Path(folder) / "runs"
        subprocess.run(["git", "clone", "--quiet", paths.PROJECT, checkout], check=True)
        rows = [
            {"run": title, "seconds": _seconds(checkout, runs, profile)}
            for title in ("from nothing", "again, with nothing to do")
        ]
    here = {name: hardware.describe()[name] for name in HARDWARE}
    return pd.DataFrame(rows).assign(profile=profile, **here, commit=commit)


def with_others(earlier: Path, table: pd.DataFrame) -> pd.DataFrame:
    """``table`` of :func:`measure` after the rows of other hardware in the file ``earlier``."""
    if not earlier.is_file():
        return table
    others = pd.read_csv(earlier)
    same = (others[HARDWARE] == table[HARDWARE].iloc[0]).all(axis=1)
    return pd.concat([others[~same], table], ignore_index=True)


def _seconds(checkout: Path, runs: Path, profile: str) -> float:
    environment = os.environ | {"PAPERLIB_RUNS": str(runs), "PYTHONPATH": str(checkout)}
    environment.pop("PAPERLIB_PROJECT", None)  # where results go, were it set
    if (data := paths.PROJECT / "data").is_dir():
        environment.setdefault("PAPERLIB_DATA", str(data))
    command = [sys.executable, "-m", "paperlib", "run", "--profile", profile]
    started = time.perf_counter()
    done = subprocess.run([*command, "--cores", str(cores())], cwd=checkout, env=environment)
    if done.returncode:
        raise RunError(f"the run of profile {profile} failed; the lines above say why")
    return time.perf_counter() - started
