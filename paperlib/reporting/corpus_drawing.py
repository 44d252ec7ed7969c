"""The figures of section 4 (notebooks 06, 09 and 10), drawn from numbers."""

import math
from collections.abc import Mapping, Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from paperlib.reporting.drawing import plain_log_scale, whole_epochs
from paperlib.reporting.figures import BLACK, BLUE, GREEN, VERMILION

HALVES = {
    "d": ("validation", BLUE),
    "d_p": ("validation (p)", VERMILION),
    "d_q": ("validation (q)", GREEN),
    "train_loss": ("training", BLUE),
    "train_d_p": ("training (p)", VERMILION),
    "train_d_q": ("training (q)", GREEN),
}
"""Of Figure 3: D and its two parts by their name in a history, with label and colour."""


def language_models(
    runs: Mapping[str, tuple[Sequence[float], Sequence[float]]], averaging: Mapping[str, int | None]
) -> Figure:
    """Validation perplexity after each epoch of the initial models, by title.

    ``runs`` has the perplexities of the first run and those of the second, which may be empty and
    begins with what it starts from; ``averaging`` has the epoch of the first run after which
    averaging begins, if it does.
    """
    fig, ax = plt.subplots(figsize=(7, 4))
    for (title, (first, second)), colour in zip(runs.items(), (BLUE, VERMILION), strict=False):
        ax.plot(range(1, len(first) + 1), first, color=colour, marker=".", label=title)
        if since := averaging.get(title):
            ax.axvline(since, color=colour, linestyle=":", label="its averaging begins")
        if second:
            epochs = range(len(first), len(first) + len(second))
            ax.plot(epochs, second, "--", color=colour, marker=".", label="its second run")
    whole_epochs(ax)
    plain_log_scale(ax)
    ax.set_ylabel("validation perplexity")
    ax.legend()
    return fig


def discriminator(series: Mapping[str, Sequence[float]]) -> Figure:
    """Figure 3 from the keys of ``HALVES``, each with a number an epoch: D on the left, D^(p) and
    D^(q) on the right; training is dotted."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    for key, values in series.items():
        label, colour = HALVES[key]
        dash = ":" if key.startswith("train") else "-"
        ax = axes[0] if key in ("d", "train_loss") else axes[1]
        epochs = range(1, len(values) + 1)
        ax.plot(epochs, values, color=colour, linestyle=dash, marker=".", label=label)
    axes[0].axhline(math.log(4), color=BLACK, linewidth=1, label="log 4: q₀ = p")
    axes[1].axhline(math.log(4) / 2, color=BLACK, linewidth=1, label="½ log 4")
    axes[0].set_ylabel("$D$ (nats a token)")
    axes[1].set_ylabel("$D^{(p)}$ and $D^{(q)}$ (nats a token)")
    for ax in axes:
        whole_epochs(ax)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    return fig


def change_by_rank(ax: Axes, bins: pd.DataFrame, colour: str = BLUE) -> None:
    """Rows ``bin``, ``mean``, ``low`` and ``high`` as points with their intervals."""
    errors = [bins["mean"] - bins["low"], bins["high"] - bins["mean"]]
    ax.axhline(0, color=BLACK, linewidth=1)
    ax.errorbar(bins["bin"], bins["mean"], yerr=errors, fmt="o", color=colour, capsize=3)
    ax.set(xlabel="rank in the training text", ylabel="change of log q (nats)")
    labels = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    plt.setp(ax.get_xticklabels(), **labels)


def who_gains(bins: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """A panel for each ``model`` of the bins, by its title if it has one; the chosen word's change
    stands in its panel's title, for it would hide the others'."""
    panels = list(dict.fromkeys(bins["model"]))
    rows = -(-len(panels) // 2)
    fig, axes = plt.subplots(
        rows, 2, figsize=(8.5, 3.8 * rows), layout="constrained", squeeze=False
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes.flat, panels, strict=False):
        part = bins[bins["model"] == panel]
        is_chosen = part["bin"] == "chosen word"
        change_by_rank(ax, part[~is_chosen])
        note = "".join(
            f" (chosen word, not shown: {mean:+.3f})" for mean in part.loc[is_chosen, "mean"]
        )
        ax.set_title(fill(titles.get(panel, panel) + note, 56), fontsize=9)
    return fig


def large_scale(
    curves: Mapping[str, Sequence[float]], bins: pd.DataFrame, *, unit: str, true: float | None
) -> Figure:
    """Section 4.3's three trainings, and who gains.

    ``curves`` has an ``initial``, a ``discriminator``, a ``fine-tuned`` and a ``cross-entropy
    alone``, the last two with the start as epoch 0; ``unit`` says what an epoch is. ``true`` is the
    true perplexity of the test text, if it is known; it is a number in the legend, for a line so
    far below would leave the curves no room.
    """
    fig, axes = plt.subplots(2, 2, figsize=(9.5, 7), layout="constrained")
    places = {"initial": (0, 0), "discriminator": (0, 1), "fine-tuned": (1, 0)}
    for name, place in places.items():
        ax, first = axes[place], int(name == "fine-tuned")
        epochs = range(1 - first, 1 - first + len(curves[name]))
        label = "with discriminator" if first else None
        ax.plot(epochs, curves[name], marker=".", color=BLUE, label=label)
        whole_epochs(ax)
        ax.set(title=name, xlabel=f"epoch ({unit} of the text)", ylabel="validation perplexity")
    control = curves["cross-entropy alone"]
    label = "cross-entropy alone (our control)"
    axes[1, 0].plot(range(len(control)), control, "--", marker=".", color=BLACK, label=label)
    if true is not None:
        axes[1, 0].plot([], [], " ", label=f"true perplexity, test text: {true:.2f}")
    axes[0, 1].axhline(math.log(4), color=BLACK, linestyle="--", label="log 4")
    axes[0, 1].set_ylabel("D on validation text (nats)")
    change_by_rank(axes[1, 1], bins, VERMILION)
    axes[1, 1].set_title("who gains")
    for ax in (axes[0, 1], axes[1, 0]):
        ax.legend()
    return fig
