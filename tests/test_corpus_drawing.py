"""The figures of section 4: what is drawn, and where."""

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from paperlib.reporting import corpus_drawing


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def labels(ax):
    """Of the curves of a panel."""
    return [line.get_label() for line in ax.get_lines() if not line.get_label().startswith("_")]


def bins(*models):
    """Rows for each model: three bins and a chosen word."""
    names = ("1–10", "11–30", "3001–10000", "chosen word")
    return pd.DataFrame(
        {"model": model, "bin": name, "mean": k, "low": k - 1, "high": k + 1}
        for model in models
        for k, name in enumerate(names)
    )


def test_a_second_run_goes_on_where_the_first_one_ended():
    first, second = [900.0, 400.0, 300.0], [300.0, 290.0]
    runs = {"a": (first, second), "b": (first, [])}
    fig = corpus_drawing.language_models(runs, {"b": 2})
    (ax,) = fig.axes
    assert labels(ax) == ["a", "its second run", "b", "its averaging begins"]
    assert list(ax.get_lines()[1].get_xdata()) == [3, 4]
    assert ax.get_yscale() == "log"
    fig.canvas.draw()
    shown = [tick.get_text() for tick in ax.get_yticklabels()]
    assert {"400", "500", "700"} <= set(shown)


def test_the_discriminators_halves_are_on_the_right():
    series = {key: [1.0, 0.9] for key in corpus_drawing.HALVES}
    left, right = corpus_drawing.discriminator(series).axes
    assert labels(left) == ["validation", "training", "log 4: q₀ = p"]
    assert len(labels(right)) == 5
    assert left.get_lines()[-1].get_ydata()[0] == pytest.approx(math.log(4))


def test_each_model_has_a_panel_without_the_chosen_word():
    fig = corpus_drawing.who_gains(bins("doc_ptb", "perturbed model", "other"), {"doc_ptb": "D"})
    titles = [ax.get_title() for ax in fig.axes]
    assert titles[0] == "D (chosen word, not shown: +3.000)"
    assert titles[1].startswith("perturbed model")
    assert not fig.axes[3].axison
    fig.canvas.draw()
    last = fig.axes[0].get_xticklabels()[-1]
    assert last.get_text() == "3001–10000"
    assert last.get_ha() == "right"


@pytest.mark.parametrize("true", [None, 82.47])
def test_the_control_is_beside_fine_tuning(true):
    curves = {"initial": [3.0, 2.0], "discriminator": [1.0], "fine-tuned": [2.0, 1.9]}
    curves["cross-entropy alone"] = [2.0, 1.8]
    fig = corpus_drawing.large_scale(curves, bins("a")[:3], unit="one part", true=true)
    ax = fig.axes[2]
    beside = ["true perplexity, test text: 82.47"] if true else []
    expected = ["with discriminator", "cross-entropy alone (our control)", *beside]
    assert labels(ax) == expected
    assert list(ax.get_lines()[1].get_xdata()) == [0, 1]
    assert list(fig.axes[0].get_lines()[0].get_xdata()) == [1, 2]
