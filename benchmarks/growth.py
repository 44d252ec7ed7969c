"""How time and memory grow with vocabulary, tokens and experts: no faster than the arithmetic."""

import statistics
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks import heads, large, sampling, sentences
from benchmarks.harness import Benchmark, Case, alternating, peaks
from paperlib import hardware
from paperlib.progress import bar

MIXED = hardware.precision("auto") == "mixed"
HEAD = {"tokens": 200, "experts": 4, "words": 10_000, "width": 128, "mixed": MIXED}
NETWORK = {"profile": "quick", "words": 1000, "batch": 128, "mixed": MIXED}

WORDS = (1_000, 3_000, 10_000, 30_000, 100_000)
TOKENS = (100, 300, 1_000, 3_000)
AXES: dict[str, tuple[Callable[..., Case], dict, dict[str, tuple[int, ...]]]] = {
    "sampling": (
        sampling.sample,
        {"n_words": 1000, "sentences": 10_000, "dense": False},
        {"n_words": WORDS, "sentences": (3_000, 10_000, 30_000, 100_000)},
    ),
    "mixture step": (
        heads.model,
        HEAD | {"alternatives": False},
        {"words": WORDS, "tokens": TOKENS, "experts": (1, 2, 4, 8, 16)},
    ),
    "mixture discriminator step": (
        heads.discriminator,
        HEAD | {"alternatives": False},
        {"words": WORDS, "tokens": TOKENS, "experts": (1, 2, 4, 8, 16)},
    ),
    "differentiated softmax step": (
        large.step,
        {"tokens": 256, "words": 10_000, "mixed": MIXED, "alternatives": False},
        {"words": WORDS, "tokens": TOKENS},
    ),
    "language-model step": (
        sentences.language_model,
        NETWORK | {"alternatives": False},
        {"words": WORDS, "batch": (32, 100, 320, 1_000)},
    ),
    "discriminator step": (
        sentences.discriminator,
        NETWORK | {"alternatives": False},
        {"words": WORDS, "batch": (32, 100, 320, 1_000)},
    ),
}
"""By subject: how to build it, at which shape, and along which axes it grows."""

TITLES = {"n_words": "words", "sentences": "sentences", "batch": "sentences"}


def measure() -> pd.DataFrame:
    """One row a subject, axis and size: median time of three calls and peak memory."""
    points = [
        (subject, axis, size, Benchmark(subject, "", build, shape | {axis: size}))
        for subject, (build, shape, axes) in AXES.items()
        for axis, sizes in axes.items()
        for size in sizes
    ]
    rows = []
    for subject, axis, size, benchmark in bar(points, title="growth", unit="point"):
        times = alternating(benchmark.case(), repeats=3)["ours"]
        rows.append(
            {
                "subject": subject,
                "axis": TITLES.get(axis, axis),
                "size": size,
                "median_s": statistics.median(times),
                "peak_mb": peaks(benchmark)["ours"],
            }
        )
    return pd.DataFrame(rows)


def slopes(points: pd.DataFrame) -> pd.DataFrame:
    """Exponents b of time or memory ~ size^b, fitted in logarithms to each line's upper half.

    Below that, what does not depend on the size hides how the rest grows.
    """
    rows = []
    for (subject, axis), line in points.groupby(["subject", "axis"], sort=False):
        upper = line.nlargest(len(line) // 2 + 1, "size")
        rows.append(
            {"subject": subject, "axis": axis}
            | {
                name: np.polyfit(np.log(upper["size"]), np.log(upper[column]), 1)[0]
                for name, column in (("time", "median_s"), ("memory", "peak_mb"))
            }
        )
    return pd.DataFrame(rows)


def draw(points: pd.DataFrame, fitted: pd.DataFrame) -> Figure:
    """Time above, memory below, one column an axis, with lines of slope one."""
    axes_of = {"words": "vocabulary (words)", "tokens": "tokens or sentences", "experts": "experts"}
    points = points.assign(axis=points["axis"].replace("sentences", "tokens"))
    fitted = fitted.assign(axis=fitted["axis"].replace("sentences", "tokens"))
    figure, grid = plt.subplots(2, 3, figsize=(13, 9.5), sharex="col", layout="constrained")
    colours = dict(zip(AXES, plt.get_cmap("viridis")(np.linspace(0, 0.9, len(AXES))), strict=True))
    markers = dict(zip(AXES, "osDP^v", strict=True))
    for column, (axis, title) in enumerate(axes_of.items()):
        for row, (measure_, unit) in enumerate((("median_s", "s"), ("peak_mb", "MB"))):
            panel = grid[row, column]
            here = points[points["axis"] == axis]
            for subject, line in here.groupby("subject", sort=False):
                match = (fitted["subject"] == subject) & (fitted["axis"] == axis)
                slope = fitted.loc[match, "time" if row == 0 else "memory"].iloc[0]
                panel.loglog(
                    line["size"],
                    line[measure_],
                    marker=markers[subject],
                    color=colours[subject],
                    label=f"{subject}: {slope:.2f}",
                )
            sizes = np.array([here["size"].min(), here["size"].max()])
            lowest = here[measure_].min()
            panel.loglog(sizes, lowest * sizes / sizes[0], "k:", label="slope 1")
            panel.set_ylabel("time of a step (s)" if row == 0 else f"peak memory ({unit})")
            panel.legend(
                fontsize=7,
                title="fitted slope",
                title_fontsize=7,
                ncols=2,
                loc="lower center",
                bbox_to_anchor=(0.5, 1.0),
            )
        grid[1, column].set_xlabel(title)
    return figure
