"""How time and memory grow with vocabulary, tokens and experts: no faster than the arithmetic."""

import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks import heads, large, sampling, sentences, texts
from benchmarks.harness import PRECISIONS, Benchmark, Case, alternating, peaks, seconds
from paperlib.progress import bar

MIXED = PRECISIONS[-1]
HEAD = {"tokens": 200, "experts": 4, "words": 10_000, "width": 128, "mixed": MIXED}
NETWORK = {"profile": "quick", "words": 1000, "batch": 128, "mixed": MIXED}

WORDS = (1_000, 3_000, 10_000, 30_000, 100_000)
TOKENS = (100, 300, 1_000, 3_000)
EXPERTS = (1, 2, 4, 8, 16)
SENTENCES = (32, 100, 320, 1_000)
AXES: dict[str, tuple[Callable[..., Case], dict, dict[str, tuple[int, ...]]]] = {
    "sampling": (
        sampling.sample,
        {"n_words": 1000, "sentences": 10_000, "dense": False},
        {"n_words": WORDS, "sentences": (3_000, 10_000, 30_000, 100_000)},
    ),
    "scoring": (
        sampling.score,
        {"n_words": 1000, "sentences": 1_000, "dense": False},
        # What follows the start token alone takes words × words evaluations.
        {"n_words": (1_000, 2_000, 5_000, 10_000, 20_000), "sentences": (1_000, 3_000, 10_000)},
    ),
    "mixture step": (
        heads.model,
        HEAD | {"alternatives": False},
        {"words": WORDS, "tokens": TOKENS, "experts": EXPERTS},
    ),
    "mixture discriminator step": (
        heads.discriminator,
        HEAD | {"alternatives": False},
        {"words": WORDS, "tokens": TOKENS, "experts": EXPERTS},
    ),
    "differentiated softmax step": (
        large.step,
        {"tokens": 256, "words": 10_000, "mixed": MIXED, "alternatives": False},
        {"words": WORDS, "tokens": TOKENS},
    ),
    "language-model step": (
        sentences.language_model,
        NETWORK | {"alternatives": False},
        {"words": WORDS, "batch": SENTENCES},
    ),
    "discriminator step": (
        sentences.discriminator,
        NETWORK | {"alternatives": False},
        {"words": WORDS, "batch": SENTENCES},
    ),
    "mixture training step": (
        texts.training_step,
        {"profile": "quick", "mixed": MIXED, "alternatives": False},
        {"words": WORDS, "batch": (3, 10, 30, 100), "experts": EXPERTS},
    ),
}
"""By subject: how to build it, at which shape, and along which axes it grows."""

TITLES = {"n_words": "words", "batch": "sentences"}

DECLARED = {"sampling": 1.0}
"""Exponents of work that is no product: proposals for each word, and draws for each sentence."""

TOLERANCE = 0.15
"""What an exponent may exceed that of the arithmetic by: fits to the same points differ by less."""

REPEATS = 5


def measure() -> pd.DataFrame:
    """One row a subject, axis and size: median time of five warm calls, peak memory, arithmetic."""
    points = [
        (subject, axis, size, Benchmark(subject, "", build, shape | {axis: size}))
        for subject, (build, shape, axes) in AXES.items()
        for axis, sizes in axes.items()
        for size in sizes
    ]
    rows = []
    for subject, axis, size, benchmark in bar(points, title="growth", unit="point"):
        case = benchmark.case()
        rows.append(
            {
                "subject": subject,
                "axis": TITLES.get(axis, axis),
                "size": size,
                "median_s": _median_of_ours(case),
                "peak_mb": peaks(benchmark, case)["ours"],
                "arithmetic": arithmetic(subject, size, case),
            }
        )
    return pd.DataFrame(rows)


def _median_of_ours(case: Case) -> float:
    timers = {"ours": partial(seconds, case.ways["ours"])}
    return statistics.median(alternating(timers, REPEATS)["ours"])


def arithmetic(subject: str, size: int, case: Case) -> float:
    """What a case has to do, in any unit: operations, evaluations, or else bytes."""
    if subject in DECLARED:
        return size ** DECLARED[subject]
    return case.work.operations or case.evaluations or case.work.moved


def slopes(points: pd.DataFrame) -> pd.DataFrame:
    """Exponents b of time or memory ~ size^b, fitted in logarithms to each line's upper half.

    Below that, what does not depend on the size hides how the rest grows. ``arithmetic`` is the
    exponent of what there is to do, over the same sizes; ``grows_faster`` says which of time and
    memory exceeds it by more than ``TOLERANCE``.
    """
    rows = []
    for (subject, axis), line in points.groupby(["subject", "axis"], sort=False):
        upper = line.nlargest(len(line) // 2 + 1, "size")
        fitted = {
            name: np.polyfit(np.log(upper["size"]), np.log(upper[column]), 1)[0]
            for name, column in (
                ("time", "median_s"),
                ("memory", "peak_mb"),
                ("arithmetic", "arithmetic"),
            )
        }
        limit = fitted["arithmetic"] + TOLERANCE
        faster = [name for name in ("time", "memory") if fitted[name] > limit]
        rows.append(
            {"subject": subject, "axis": axis} | fitted | {"grows_faster": ", ".join(faster)}
        )
    return pd.DataFrame(rows)


def for_people(fitted: pd.DataFrame) -> pd.DataFrame:
    """The exponents, rounded."""
    rounded = fitted[["time", "memory", "arithmetic"]].map("{:.2f}".format)
    flags = fitted["grows_faster"].replace("", "–")
    return pd.concat([fitted[["subject", "axis"]], rounded], axis=1).assign(
        **{"faster than the arithmetic": flags}
    )


def draw(points: pd.DataFrame, fitted: pd.DataFrame) -> Figure:
    """Time above, memory below, one column an axis, beside lines of slope one."""
    axes_of = {"words": "vocabulary (words)", "tokens": "tokens or sentences", "experts": "experts"}
    points, fitted = (
        table.assign(axis=table["axis"].replace("sentences", "tokens"))
        for table in (points, fitted)
    )
    figure, grid = plt.subplots(2, 3, figsize=(13, 9.5), sharex="col", layout="constrained")
    subjects = points["subject"].unique()
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(subjects)))
    looks = dict(zip(subjects, zip("osDP^vX*", shades, strict=False), strict=True))
    for column, (axis, title) in enumerate(axes_of.items()):
        for row, (measured, unit) in enumerate((("median_s", "s"), ("peak_mb", "MB"))):
            panel = grid[row, column]
            here = points[points["axis"] == axis]
            for subject, line in here.groupby("subject", sort=False):
                match = (fitted["subject"] == subject) & (fitted["axis"] == axis)
                slope = fitted.loc[match, "time" if row == 0 else "memory"].iloc[0]
                marker, colour = looks[subject]
                label = f"{subject}: {slope:.2f}"
                panel.loglog(line["size"], line[measured], color=colour, marker=marker, label=label)
            _slope_one(panel, here["size"], here[measured])
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


def _slope_one(panel: plt.Axes, sizes: pd.Series, values: pd.Series) -> None:
    """Dotted lines of slope one through the panel, which they leave as large as the data are."""
    low, high = values.min() / 1.5, values.max() * 1.5
    ends = np.array([sizes.min(), sizes.max()])
    bottom = low * ends[0] / ends[1]  # the lowest line reaches the panel's last corner alone
    for start in np.geomspace(bottom, high, 8)[1:-1]:
        panel.loglog(ends, start * ends / ends[0], ":", color="0.7", linewidth=0.8, zorder=0)
    panel.plot([], [], ":", color="0.7", label="slope 1")
    panel.set_ylim(low, high)
