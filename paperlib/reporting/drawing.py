"""What several figures draw alike: curves of trainings, their axes, one legend for all panels."""

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.ticker import MaxNLocator, NullLocator

from paperlib import proposition1
from paperlib.reporting.figures import BLACK


def whole_epochs(ax: Axes) -> None:
    """Ticks of an axis of epochs at whole numbers alone."""
    ax.set_xlabel("epoch")
    ax.xaxis.get_major_locator().set_params(integer=True)


def curve(ax: Axes, history: Sequence[Mapping], column: str, **look) -> list[float]:
    """Draw ``column`` of a training's ``history`` over its epochs; returns the values drawn."""
    values = [entry[column] for entry in history]
    ax.plot([entry["epoch"] for entry in history], values, **look)
    whole_epochs(ax)
    return values


def mark_decays(ax: Axes, history: Sequence[Mapping], column: str, **look) -> None:
    """Mark the first epoch at each lower learning rate by a ▼ on the curve of ``column``."""
    rates = [entry["learning_rate"] for entry in history]
    lower = [history[k] for k in np.flatnonzero(np.diff(rates) < 0) + 1]
    marked = [entry[column] for entry in lower]
    ax.plot([entry["epoch"] for entry in lower], marked, "v", markersize=8, **look)


def plain_log_scale(ax: Axes) -> None:
    """A logarithmic y-axis over less than a few powers of ten, labelled by plain numbers."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:.0f}")


def reference_line(ax: Axes, value: float, label: str, **look) -> None:
    """A level line at ``value``, or, where the curves drawn so far leave it out, a note on it."""
    low, high = ax.get_ylim()
    if low <= value <= high:
        ax.axhline(value, label=label, **look)
        return
    side, height, edge = ("below", 0.02, "bottom") if value < low else ("above", 0.98, "top")
    place = {"xycoords": "axes fraction", "ha": "center", "va": edge, "fontsize": "small"}
    ax.annotate(f"{label}: {value:.2f}, {side} this range", (0.5, height), **place)


def one_legend(fig: Figure, order: Sequence[str]) -> Legend:
    """A legend for all panels, beside them: each label once, in this ``order``.

    Its lines are at least 2 points wide, so that their colours are told apart.
    """
    found = {}
    for ax in fig.axes:
        found |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    labels = [label for label in order if label in found]
    legend = fig.legend([found[label] for label in labels], labels, loc="outside right center")
    for line in legend.get_lines():
        line.set_linewidth(max(2.0, line.get_linewidth()))
    return legend


def one_occurrence(p_hat: float, relative_epsilon: float) -> Figure:
    """Loss of one occurrence of a word (eq. 12) and what multiplies v (eq. 13), around ``p_hat``.

    The points are at q = p̂(1 + ``relative_epsilon``). The right panel has the two terms of
    (14) and (15) beside the exact coefficient; both are multiplied by p̂.
    """

    def exact(q, p_hat):
        return p_hat * proposition1.coefficient(q, p_hat)

    def two_terms(q, p_hat):
        return p_hat * proposition1.expansion(q - p_hat, p_hat)

    q = p_hat * (1 + relative_epsilon)
    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    _around(left, q, p_hat, {"loss": proposition1.loss})
    _around(right, q, p_hat, {"exact": exact, "two terms": two_terms})
    left.set_ylabel("loss of one occurrence (nats)")
    right.set(yscale="asinh", yticks=[-100, -10, -1, 0, 1, 10], ylabel="p̂ × coefficient (nats)")
    times = proposition1.step_ratio(q, p_hat)
    fig.suptitle(f"p̂ = {p_hat:.3g}, q = {q:.3g}: a step {times:.3f} times that of cross-entropy")
    return fig


def _around(ax: Axes, q: float, p_hat: float, formulas: Mapping[str, Callable]) -> None:
    around = p_hat * np.geomspace(0.005, 4, 300)
    for name, formula in formulas.items():
        (line,) = ax.semilogx(around, formula(around, p_hat), label=name)
        ax.plot(q, formula(q, p_hat), "o", color=line.get_color())
    ax.axvline(p_hat, color=BLACK, linestyle=":", label="p̂")
    ax.set_xlabel("q")
    ax.legend()
