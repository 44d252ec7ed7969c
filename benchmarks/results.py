"""What the comparisons come to: tables for people, what a user gains, and a plot."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.harness import AS_PEOPLE_RUN_IT
from paperlib import hardware
from paperlib.checkpoints import load_json
from paperlib.reporting.tables import save_table

FLOAT32 = ", float32"
"""What the name of an alternative ends in that is not in the precision of its case."""

USUAL = "the usual way"
USUAL_AS_RUN = USUAL + AS_PEOPLE_RUN_IT
USUAL_IN_FLOAT32 = "the usual way in float32, ours in mixed precision"

MARKERS = {
    USUAL: ("o", "#0072B2"),
    USUAL_AS_RUN: ("d", "#D55E00"),
    USUAL_IN_FLOAT32: ("s", "#E69F00"),
}
OTHER_MARKERS = [
    ("^", "#009E73"),
    ("D", "#CC79A7"),
    ("v", "#56B4E9"),
    ("P", "#7F6000"),
    ("X", "#000000"),
    ("*", "#999999"),
]


def where() -> str:
    """Hardware and number of threads, for titles."""
    here = hardware.describe()
    return f"{here['device']} ({here['processor']}), threads: {torch.get_num_threads()}"


def with_others(folder: Path, table: pd.DataFrame, subjects: Sequence[str]) -> pd.DataFrame:
    """``table`` and, in the order of ``subjects``, the rows of others of them that lie there.

    These stay only if they are from hardware and settings like those now.
    """
    earlier, machine = folder / "benchmarks.csv", folder / "machine.json"
    if not (earlier.is_file() and machine.is_file()):
        return table
    if not hardware.describe().items() <= load_json(machine).items():
        return table
    others = pd.read_csv(earlier)
    others = others[~others["subject"].isin(table["subject"])]
    order = {subject: at for at, subject in enumerate(subjects)}
    both = pd.concat([others, table], ignore_index=True)
    # Those that need data are no benchmarks here without them: they stay last.
    place = both["subject"].map(lambda subject: order.get(subject, len(order)))
    return both.loc[place.sort_values(kind="stable").index]


def save(folder: Path, table: pd.DataFrame) -> None:
    """All comparisons as a table, and what a user gains."""
    title = f"Benchmarks; {where()}; ours first in each case"
    save_table(folder, "benchmarks", table, title=title, shown=for_people(table))
    save_table(folder, "summary", summary(table), title=where())


def for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The table of all comparisons, rounded."""

    def cells(column: pd.Series, form: str) -> list[str]:
        return ["" if pd.isna(value) or not value else form.format(value) for value in column]

    spread = zip(table["min_s"], table["max_s"], strict=True)
    return pd.DataFrame(
        {
            "subject": table["subject"],
            "shape": table["shape"],
            "way": table["way"],
            "median (s)": cells(table["median_s"], "{:.3g}"),
            "range (s)": [f"{low:.3g}–{high:.3g}" for low, high in spread],
            "× our time": cells(table["times_ours"], "{:.2f}"),
            "tokens/s": cells(table["tokens_per_s"], "{:.0f}"),
            "peak (MB)": cells(table["peak_mb"], "{:.0f}"),
            "× our memory": cells(table["times_our_memory"], "{:.2f}"),
            "floor (s)": cells(table["floor_s"], "{:.3g}"),
            "of the floor": cells(table["share_of_floor"], "{:.0%}"),
        }
    )


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """What a user gains: of each subject the last case, beside the usual way.

    Times faster than the usual way as people run it and in our process, at the same precision;
    where there is mixed precision, ours in it against the usual way in float32; memory at the same
    precision. A column that no subject has anything for is left out.
    """
    rows = {}
    for (subject, shape), case in table.groupby(["subject", "shape"], sort=False):
        if len(case) == 1:
            continue  # there is no other way
        usual = case.iloc[1]
        ratios = case.set_index("way")["times_ours"].map("{:.1f}".format)
        name, _, precision = subject.partition(", ")
        rows[name] = {
            "what": f"{name} ({', '.join(part for part in (shape, precision) if part)})",
            "ours": f"{case['median_s'].iloc[0]:.3g} s",
            "instead of": usual["way"],
            "times faster than as people run it": ratios.get(usual["way"] + AS_PEOPLE_RUN_IT, ""),
            "times faster in one process": ratios[usual["way"]],
            "times faster than in float32": ratios.get(usual["way"] + FLOAT32, ""),
            "memory": in_words(usual["times_our_memory"]),
        }
    found = pd.DataFrame(list(rows.values()))
    return found.loc[:, (found != "").any()]


def in_words(ratio: float) -> str:
    """How our memory compares, given the other's as a multiple of ours."""
    if 0.95 < ratio < 1.05:
        return "the same"
    return f"{ratio:.1f} × less" if ratio > 1 else f"{1 / ratio:.1f} × more"


def has_alternatives(table: pd.DataFrame) -> bool:
    """Whether there is anything to draw: a case with another way beside ours."""
    return bool(table.duplicated(["subject", "shape"]).any())


def alternatives(table: pd.DataFrame) -> pd.DataFrame:
    """All rows but ours, with the row of the plot, ``at``, and the ``kind`` of alternative.

    Some case has to have an alternative; see :func:`has_alternatives`.
    """
    parts = []
    cases = [case for _, case in table.groupby(["subject", "shape"], sort=False) if len(case) > 1]
    for at, case in enumerate(cases):
        usual = case["way"].iloc[1]
        names = {
            usual: USUAL,
            usual + AS_PEOPLE_RUN_IT: USUAL_AS_RUN,
            usual + FLOAT32: USUAL_IN_FLOAT32,
        }
        kinds = case["way"].map(lambda way, names=names: names.get(way, way))
        parts.append(case.assign(at=at, kind=kinds).iloc[1:])
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    """Each alternative's time and memory as multiples of ours, one row a case."""
    others = alternatives(table)
    kinds = others["kind"].unique()
    special = [kind for kind in kinds if kind not in MARKERS]
    all_markers = MARKERS | dict(zip(special, OTHER_MARKERS, strict=False))
    markers = {kind: look for kind, look in all_markers.items() if kind in kinds}
    cases = others.drop_duplicates("at")
    labels = [f"{case.subject}\n{case.shape}" for case in cases.itertuples(index=False)]
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 0.34 * len(cases) + 1.6), sharey=True, layout="constrained"
    )
    titles = {"times_ours": "time", "times_our_memory": "peak memory"}
    for panel, (column, title) in zip(panels, titles.items(), strict=True):
        panel.axvline(1, color="black", linewidth=1)
        for number, (kind, (marker, colour)) in enumerate(markers.items()):
            rows = others[others["kind"] == kind]
            height = rows["at"] + (0, 0.22, -0.22)[number % 3]  # none hides another
            panel.plot(rows[column], height, marker, color=colour, markersize=6)
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.margins(x=0.05)
        panel.set_xlabel(f"{title}, × ours")
        panel.grid(axis="both", color="0.9")
        panel.set_axisbelow(True)
    panels[0].set_yticks(range(len(cases)), labels, fontsize=7)
    panels[0].set_ylim(len(cases) - 0.4, -0.6)
    handles = [
        Line2D([], [], marker=marker, color=colour, linestyle="none", label=kind)
        for kind, (marker, colour) in markers.items()
    ]
    title = "right of the line, ours takes less"
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=2, fontsize=8)
    return figure
