"""All benchmarks on the hardware at hand: ``python -m benchmarks [NAME …]``.

Writes ``figures/benchmarks/``: times, memory and ratios as tables and a plot, how they grow, what
mixed precision changes, where the time of the profile ``quick`` goes, and what the hardware is.
With names, only these are run; the others' rows stay as they are if they are from the same
hardware. ``whole``, a run of that profile from nothing, takes minutes and is run only by its name.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks import (
    corpora,
    epochs,
    gpu_hours,
    growth,
    harness,
    heads,
    large,
    low_precision,
    results,
    sampling,
    sentences,
    shards,
    texts,
    whole,
)
from paperlib import hardware, paths
from paperlib.checkpoints import save_json
from paperlib.progress import bar
from paperlib.reporting.tables import save_table
from paperlib.threads import cores

BENCHMARKS = [
    benchmark
    for module in (sampling, heads, large, sentences, epochs, texts, corpora, shards)
    for benchmark in module.BENCHMARKS
]
PROFILE = "quick"


def main() -> int:
    """Run what is asked for and write it."""
    given = arguments()
    harness.use_threads(given.threads)
    matplotlib.use("agg")
    hardware.keep_memory()
    folder, names = given.output, given.names
    folder.mkdir(parents=True, exist_ok=True)
    if "whole" in names:
        try:
            write_whole(folder)
        except whole.RunError as error:
            print(f"{error}.", file=sys.stderr)
            return 1
    if chosen := [b for b in BENCHMARKS if not names or name_of(b) in names]:
        write_comparisons(folder, chosen, given.repeats)
    if not names or "low precision" in names:
        write_low_precision(folder)
    if not names or "growth" in names:
        write_growth(folder)
    if not names or "stages" in names:
        write_stages(folder)
    if not names or "gpu hours" in names:
        write_gpu_hours(folder)
    return 0


def arguments() -> argparse.Namespace:
    """What is asked for, checked."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    others = {"gpu hours", "growth", "low precision", "stages", "whole"}
    names = sorted({name_of(benchmark) for benchmark in BENCHMARKS} | others)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(names)}")
    parser.add_argument(
        "--repeats", type=int, metavar="N", help=f"calls that are timed, {harness.LEAST} or more"
    )
    parser.add_argument(
        "--threads", type=int, default=cores(), metavar="N", help="cores to use (default: all)"
    )
    parser.add_argument("--output", type=Path, default=paths.figures("benchmarks"), metavar="PATH")
    given = parser.parse_args()
    if unknown := set(given.names) - set(names):
        parser.error(f"there is no benchmark {unknown.pop()!r}; choose from {', '.join(names)}")
    if given.repeats is not None and given.repeats < harness.LEAST:
        parser.error(f"--repeats must be at least {harness.LEAST}, not {given.repeats}")
    if not 1 <= given.threads <= cores():
        parser.error(f"--threads must be from 1 to {cores()}, not {given.threads}")
    return given


def name_of(benchmark: harness.Benchmark) -> str:
    """What it is asked for by: its subject without the precision."""
    return benchmark.subject.split(",")[0]


def write_comparisons(folder: Path, chosen: list[harness.Benchmark], repeats: int | None) -> None:
    """Times and memory of all ways, and what the hardware is; written after every case."""
    of = harness.machine()
    subjects = [benchmark.subject for benchmark in BENCHMARKS]
    rows = []
    for benchmark in bar(chosen, title="benchmarks", unit="case"):
        rows += harness.compare(benchmark, of, repeats)
        table = results.with_others(folder, pd.DataFrame(rows), subjects)
        results.save(folder, table)
        save_json(folder / "machine.json", asdict(of) | hardware.describe())
    if results.has_alternatives(table):
        _save(folder, "benchmarks", results.draw(table))


def write_low_precision(folder: Path) -> None:
    """What mixed precision does to two language models, where the hardware has it."""
    if not hardware.has_bfloat16():
        what = "low precision: left out, because the hardware has no LSTM in bfloat16."
        print(what, file=sys.stderr)
        return
    effect = low_precision.measure(PROFILE)
    title = f"Language models; profile {PROFILE}; {results.where()}"
    save_table(folder, "low_precision", effect, title=title, shown=effect.round(5))


def write_growth(folder: Path) -> None:
    """Points, fitted slopes and their plot."""
    points = growth.measure()
    fitted = growth.slopes(points)
    points.to_csv(folder / "growth.csv", index=False)
    title = f"Exponents b of time and memory ~ size^b; {results.where()}"
    save_table(folder, "growth_slopes", fitted, title=title, shown=growth.for_people(fitted))
    _save(folder, "growth", growth.draw(points, fitted))


def write_stages(folder: Path) -> None:
    """Where the time of the profile ``quick`` went, if it was run."""
    if not (paths.figures(PROFILE) / "provenance.json").is_file():
        return
    table, name = whole.stages(PROFILE), "where_the_time_goes"
    title = f"Where the time of profile {PROFILE} goes, on one core"
    save_table(folder, name, table, title=title, shown=whole.for_people(table))
    _save(folder, name, whole.draw(table, PROFILE))


def write_gpu_hours(folder: Path) -> None:
    """What the paper's recipes would take on the GPU whose steps were timed."""
    table = gpu_hours.hours(paths.figures("benchmarks"))
    title = "Section 4 in profile paper, hours of one NVIDIA H100; steps in mixed precision"
    save_table(folder, "gpu_hours", table, title=title, shown=gpu_hours.for_people(table))


def write_whole(folder: Path) -> None:
    """How long a whole run takes, and one with nothing to do, here and on other hardware."""
    table = whole.with_others(folder / "whole.csv", whole.measure(PROFILE))
    shown = table[["run", *whole.HARDWARE]].assign(
        cores=table["cores"].astype(str), seconds=table["seconds"].round(1).astype(str)
    )
    title = f"Profile {PROFILE} after installation"
    save_table(folder, "whole", table, title=title, shown=shown)


def _save(folder: Path, name: str, figure: Figure) -> None:
    figure.savefig(folder / f"{name}.png", dpi=150)
    figure.savefig(folder / f"{name}.pdf")
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
