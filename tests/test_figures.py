"""Figures: one look, what several draw alike, and files that say what was plotted."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from paperlib.reporting import drawing, figures


@pytest.fixture
def axes():
    fig, axes = plt.subplots(1, 2, layout="constrained")
    yield axes
    plt.close(fig)


def test_tables_are_shown_whole():
    names = [f"display.{limit}" for limit in ("max_colwidth", "max_columns", "max_rows")]
    before = {name: pd.get_option(name) for name in names}
    text = "word" * 40
    with plt.rc_context():
        figures.use_style()
        shown = pd.DataFrame({"long": [text] * 100})._repr_html_()
    for name, value in before.items():
        pd.set_option(name, value)
    assert shown.count(text) == 100


def test_classes_of_words_are_told_apart_without_colour_too():
    looks = figures.CLASS_STYLES.values()
    for part in ("color", "marker"):
        assert len({look[part] for look in looks}) == len(looks)


def test_figure_is_saved_with_its_numbers(axes, tmp_path):
    path = figures.save_figure(axes[0].figure, tmp_path / "new", "one", {"d": [1.0, 2.0]})
    assert path == tmp_path / "new/one.png"
    assert sorted(file.name for file in path.parent.iterdir()) == ["one.json", "one.pdf", "one.png"]
    assert json.loads((path.parent / "one.json").read_text(encoding="utf-8")) == {"d": [1.0, 2.0]}


HISTORY = [
    {"epoch": 0, "learning_rate": 1.0, "d": 4.0},
    {"epoch": 1, "learning_rate": 1.0, "d": 3.0},
    {"epoch": 2, "learning_rate": 0.1, "d": 2.0},
]


def test_curve_and_the_epochs_at_a_lower_rate(axes):
    assert drawing.curve(axes[0], HISTORY[1:], "d") == [3.0, 2.0]
    drawing.mark_decays(axes[0], HISTORY, "d")
    line, marks = axes[0].lines
    assert list(line.get_xdata()) == [1, 2]
    assert (list(marks.get_xdata()), list(marks.get_ydata())) == ([2], [2.0])


def test_a_reference_outside_the_axis_is_noted_and_does_not_stretch_it(axes):
    for ax in axes:
        ax.plot([80, 81])
    before = axes[1].get_ylim()
    drawing.reference_line(axes[0], 80.5, "start")
    drawing.reference_line(axes[1], 70.123, "start")
    assert axes[0].lines[-1].get_label() == "start"
    assert [text.get_text() for text in axes[1].texts] == ["start: 70.12, below this range"]
    assert axes[1].get_ylim() == before


def test_one_legend_has_each_label_once_in_the_order_asked_for(axes):
    for ax in axes:
        ax.plot([0, 1], label="second", linewidth=0.9)
        ax.plot([1, 0], label="first", linewidth=3)
    legend = drawing.one_legend(axes[0].figure, ["first", "nowhere", "second"])
    assert [text.get_text() for text in legend.get_texts()] == ["first", "second"]
    assert [line.get_linewidth() for line in legend.get_lines()] == [3, 2]


def test_one_occurrence_marks_the_word_on_every_curve():
    fig = drawing.one_occurrence(p_hat=1e-6, relative_epsilon=-0.99)
    points = [line for ax in fig.axes for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == pytest.approx([1e-8] * 3)
    assert "1.036 times" in fig.get_suptitle()
    plt.close(fig)
