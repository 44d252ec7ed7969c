"""One look for all figures and tables, and one way to save figures."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, BLACK = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#F0E442",
    "#000000",
)
"""The palette of Okabe & Ito, told apart with every common form of colour blindness."""

CLASS_STYLES = {
    "frequent": {"color": BLUE, "marker": "o"},
    "almost frequent": {"color": ORANGE, "marker": "s"},
    "other": {"color": GREEN, "marker": "^"},
    "chosen word": {"color": VERMILION, "marker": "*"},
}
"""Colour and marker of each class of words, the same in all figures."""

STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 10,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": plt.cycler(color=[BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]),
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


def use_style() -> None:
    """Set the look of all figures that follow, and show tables whole: pandas cuts nothing off."""
    plt.rcParams.update(STYLE)
    for limit in ("max_colwidth", "max_columns", "max_rows"):
        pd.set_option(f"display.{limit}", None)


def save_figure(figure: Figure, folder: Path, name: str, numbers: dict) -> Path:
    """Write ``name.png``, ``name.pdf`` and the plotted ``numbers`` as ``name.json``.

    ``numbers`` holds whatever a reader needs to redraw the figure, as lists and plain numbers.
    Returns the path of the PNG.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        metadata = {"CreationDate": None} if suffix == "pdf" else None
        figure.savefig(folder / f"{name}.{suffix}", bbox_inches="tight", metadata=metadata)
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return folder / f"{name}.png"
