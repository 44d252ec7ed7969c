"""Where the time of a whole run goes, from the provenance that the run itself wrote."""

import json

import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from paperlib import paths


def stages(profile: str) -> pd.DataFrame:
    """Seconds of each training and of each notebook, longest first."""
    folder = paths.figures(profile)
    record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    rows = [
        {"part": f"{entry['study']}: {entry['training']}", "kind": "training"}
        | {"seconds": entry["seconds"]}
        for entry in record["trainings"]
        if not entry["training"].startswith("search_")
    ]
    for path in sorted((folder / "notebooks").glob("*.ipynb")):
        papermill = json.loads(path.read_text(encoding="utf-8"))["metadata"]["papermill"]
        rows.append({"part": path.stem, "kind": "notebook", "seconds": papermill.get("duration")})
    table = pd.DataFrame(rows).dropna()
    return table.sort_values("seconds", ascending=False, ignore_index=True)


def draw(table: pd.DataFrame, profile: str) -> Figure:
    """Bars by stage."""
    figure, axes = plt.subplots(figsize=(8, 0.24 * len(table) + 1), layout="constrained")
    colours = {"training": "#0072B2", "notebook": "#E69F00"}
    for kind, part in table.groupby("kind"):
        bars = axes.barh(part.index, part["seconds"], color=colours[kind], label=kind)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=7)
    axes.set_yticks(range(len(table)), table["part"], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("seconds on one core")
    axes.set_title(f"Profile {profile}: {table['seconds'].sum() / 60:.1f} minutes of one core")
    axes.margins(y=0.01)
    axes.legend()
    return figure
