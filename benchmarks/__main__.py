"""All benchmarks on the hardware at hand: ``python -m benchmarks [NAME …]``.

Writes ``figures/benchmarks/``: times, memory and ratios as a table and a plot, how they grow, where
the time of the profile ``quick`` goes, and what the hardware is. With names, only these are run;
the others' rows stay as they are if they are from the same hardware.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

import matplotlib
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks import (
    corpora,
    growth,
    harness,
    heads,
    large,
    low_precision,
    sampling,
    sentences,
    shards,
    texts,
    whole,
)
from paperlib import hardware, paths
from paperlib.checkpoints import load_json, save_json
from paperlib.progress import bar
from paperlib.reporting.tables import save_table

BENCHMARKS = [
    benchmark
    for module in (sampling, heads, large, sentences, texts, corpora, shards)
    for benchmark in module.BENCHMARKS
]
PROFILE = "quick"


def main() -> None:
    """Run what is asked for and write it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    names = sorted({b.subject.split(",")[0] for b in BENCHMARKS} | {"growth", "low precision"})
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(names)}")
    parser.add_argument("--repeats", type=int, metavar="N", help="repetitions (3 or 5 by default)")
    parser.add_argument("--threads", type=int, metavar="N", help="default: as many as cores")
    parser.add_argument("--output", type=Path, default=paths.figures("benchmarks"), metavar="PATH")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names):
        parser.error(f"there is no benchmark {unknown.pop()!r}; choose from {', '.join(names)}")
    if given.threads:
        torch.set_num_threads(given.threads)
    matplotlib.use("agg")
    hardware.keep_memory()
    given.output.mkdir(parents=True, exist_ok=True)
    of = harness.machine()
    chosen = [b for b in BENCHMARKS if not given.names or b.subject.split(",")[0] in given.names]
    if chosen:
        rows = [
            row
            for benchmark in bar(chosen, title="benchmarks", unit="case")
            for row in harness.compare(benchmark, of, given.repeats)
        ]
        write(given.output, with_others(given.output, pd.DataFrame(rows)))
    if not given.names or "low precision" in given.names:
        effect = low_precision.measure(PROFILE)
        title = f"Language model of the synthetic study; profile {PROFILE}"
        save_table(given.output, "low_precision", effect, title=title, shown=effect.round(5))
    if not given.names or "growth" in given.names:
        write_growth(given.output)
    if not given.names:
        write_whole(given.output)
    save_json(given.output / "machine.json", asdict(of) | hardware.describe())


def with_others(folder: Path, table: pd.DataFrame) -> pd.DataFrame:
    """``table`` and, in the order of ``BENCHMARKS``, the rows of other subjects that lie there.

    These stay only if they are from hardware and settings like those now.
    """
    earlier, machine = folder / "benchmarks.csv", folder / "machine.json"
    if not (earlier.is_file() and machine.is_file()):
        return table
    if not hardware.describe().items() <= load_json(machine).items():
        return table
    others = pd.read_csv(earlier)
    others = others[~others["subject"].isin(table["subject"])]
    order = {subject: at for at, subject in enumerate(b.subject for b in BENCHMARKS)}
    both = pd.concat([others, table], ignore_index=True)
    # Those that need data are no benchmarks here without them: they stay last.
    place = both["subject"].map(lambda subject: order.get(subject, len(order)))
    return both.loc[place.sort_values(kind="stable").index]


def write(folder: Path, table: pd.DataFrame) -> None:
    """Table and plot of all comparisons."""
    shown = pd.DataFrame(
        {
            "subject": table["subject"],
            "shape": table["shape"],
            "way": table["way"],
            "median (s)": table["median_s"].map("{:.3g}".format),
            "range (s)": [
                f"{low:.3g}–{high:.3g}"
                for low, high in zip(table["min_s"], table["max_s"], strict=True)
            ],
            "× our time": table["times_ours"].map("{:.2f}".format),
            "peak (MB)": table["peak_mb"].map("{:.0f}".format),
            "× our memory": table["times_our_memory"].map("{:.2f}".format),
            "floor (s)": [f"{value:.3g}" if value else "" for value in table["floor_s"]],
            "of the floor": [f"{value:.0%}" if value else "" for value in table["share_of_floor"]],
        }
    )
    threads = f"threads: {torch.get_num_threads()}"
    title = f"Benchmarks; {hardware.describe()['device']}, {threads}; ours first in each case"
    save_table(folder, "benchmarks", table, title=title, shown=shown)
    gains = summary(table)
    save_table(folder, "summary", gains, title=title.split(";")[1].strip())
    _save(folder, "benchmarks", draw(table))


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """What a user gains: of each subject the last case, against the usual way in float32."""
    rows = {}
    for (subject, shape), case in table.groupby(["subject", "shape"], sort=False):
        in_float32 = case[case["way"].str.endswith("float32")]
        usual = (in_float32 if len(in_float32) else case).iloc[0 if len(in_float32) else 1]
        name, _, precision = subject.partition(", ")
        rows[name] = {
            "what": f"{name} ({', '.join(part for part in (shape, precision) if part)})",
            "ours": f"{case['median_s'].iloc[0]:.3g} s",
            "instead of": usual["way"],
            "times faster": f"{usual['times_ours']:.1f}",
            "times less memory": f"{usual['times_our_memory']:.1f}",
        }
    return pd.DataFrame(list(rows.values()))


def draw(table: pd.DataFrame) -> Figure:
    """Each alternative's time and memory as multiples of ours."""
    others = table[table["times_ours"].index.isin(table.index[table["way"] != "ours"])]
    labels = [f"{row.subject}\n{row.shape}: {row.way}" for row in others.itertuples(index=False)]
    figure, panels = plt.subplots(
        1, 2, figsize=(11, 0.42 * len(others) + 1.2), sharey=True, layout="constrained"
    )
    for panel, column, title in zip(
        panels, ("times_ours", "times_our_memory"), ("time", "peak memory"), strict=True
    ):
        bars = panel.barh(range(len(others)), others[column], color="#0072B2")
        panel.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
        panel.axvline(1, color="black", linewidth=1)
        panel.set_xscale("log")
        panel.margins(x=0.15, y=0.01)
        panel.set_xlabel(f"{title}, as a multiple of ours")
    panels[0].set_yticks(range(len(others)), labels, fontsize=6)
    panels[0].invert_yaxis()
    return figure


def write_growth(folder: Path) -> None:
    """Points, fitted slopes and their plot."""
    points = growth.measure()
    fitted = growth.slopes(points)
    points.to_csv(folder / "growth.csv", index=False)
    title = "Exponents b of time and memory ~ size^b"
    save_table(folder, "growth_slopes", fitted, title=title, shown=fitted.round(2).astype(str))
    _save(folder, "growth", growth.draw(points, fitted))


def write_whole(folder: Path) -> None:
    """Where the time of the profile ``quick`` went, if it was run."""
    if not (paths.figures(PROFILE) / "provenance.json").is_file():
        return
    table = whole.stages(PROFILE)
    table.to_csv(folder / "where_the_time_goes.csv", index=False)
    _save(folder, "where_the_time_goes", whole.draw(table, PROFILE))


def _save(folder: Path, name: str, figure: Figure) -> None:
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.pdf")
    plt.close(figure)


if __name__ == "__main__":
    main()
