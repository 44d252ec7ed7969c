"""How benchmarks are timed, and what becomes of their numbers."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKOUT
from matplotlib import pyplot as plt

from benchmarks import __main__ as command
from benchmarks import gpu_hours, growth, harness, heads, results, texts, whole
from paperlib import hardware, paths, settings
from paperlib.checkpoints import save_json
from paperlib.streams import pieces


def test_first_calls_do_not_count_and_the_others_alternate():
    calls = []
    timers = {name: lambda name=name: calls.append(name) for name in ("ours", "other")}
    times = harness.alternating(timers, repeats=1)
    assert calls == ["ours", "other"] * (1 + harness.LEAST)
    assert [len(runs) for runs in times.values()] == [3, 3]
    times = harness.alternating(timers, repeats=4, warm_up=False)
    assert [len(runs) for runs in times.values()] == [4, 4]
    assert len(calls) == 2 * 4 + 2 * 4


def test_rows_hold_times_memory_and_ratios_to_ours():
    case = {"tokens": 50, "experts": 4, "words": 5000, "width": 8}
    benchmark = harness.Benchmark("head", "tiny", heads.discriminator, case)
    rows = pd.DataFrame(harness.compare(benchmark, harness.Machine(1e9, 2e9, 1e9), repeats=3))
    assert rows["way"].tolist() == ["ours", "plain autograd", "plain autograd, as people run it"]
    assert rows["times_ours"].iloc[0] == rows["times_our_memory"].iloc[0] == 1
    assert (rows["min_s"] <= rows["median_s"]).all()
    assert (rows["median_s"] <= rows["max_s"]).all()
    assert rows["tokens_per_s"].tolist() == pytest.approx((50 / rows["median_s"]).tolist())
    # 2 · 3 products of 50 · 4 · 5000 logits with vectors of 8, at 10⁹ operations a second.
    assert rows["floor_s"].tolist() == pytest.approx([6 * 1e6 * 8 / 1e9] * 3)
    logits_mb = 4 * 1e6 / 2**20
    assert (rows["peak_mb"] > logits_mb).all()
    assert set(rows["commit"]) == {paths.commit()}


def test_a_process_of_its_own_times_every_call_and_says_when_it_fails():
    case = {"tokens": 50, "experts": 4, "words": 5000, "width": 8}
    benchmark = harness.Benchmark("head", "tiny", heads.discriminator, case)
    with harness.in_its_own_process(benchmark, "plain autograd") as timer:
        assert 0 < timer() < 60
        assert 0 < timer() < 60
    broken = harness.Benchmark("head", "tiny", heads.discriminator, {"tokens": -1})
    with (
        harness.in_its_own_process(broken, "plain autograd") as timer,
        pytest.raises(RuntimeError, match="timing head in a process failed"),
    ):
        timer()


def test_one_number_of_threads_is_torchs_and_numpys():
    lines = [
        "import torch",
        "from benchmarks import harness",
        "from paperlib.threads import allowed, cores",
        "harness.use_threads(1)",
        "print(allowed(), cores(), torch.get_num_threads())",
    ]
    code = [sys.executable, "-c", "; ".join(lines)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        code, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1", "1"]


def test_labels_are_those_of_the_shapes():
    setting = texts.Setting("quick")
    assert texts.shape("quick").startswith(f"{setting.tokens} tokens, 2 experts, units 128-96")
    assert all(setting.training.bptt == piece.length for piece in setting.pieces)


def compared() -> pd.DataFrame:
    """Rows of two subjects, one of them in both precisions."""
    ways = {
        ("step, float32", "small"): {"ours": 1.0, "plain": 1.5},
        ("step, mixed precision", "small"): {
            "ours": 1.0,
            "plain": 2.0,
            "plain, float32": 4.0,
            "plain, as people run it": 3.0,
        },
        ("reading", "10 tokens"): {"ours": 1.0, "loop": 0.5, "another loop": 3.0},
    }
    return pd.DataFrame(
        {
            "subject": subject,
            "shape": shape,
            "way": way,
            "median_s": ratio,
            "min_s": ratio,
            "max_s": ratio,
            "times_ours": ratio,
            "tokens_per_s": None,
            "peak_mb": ratio,
            "times_our_memory": ratio,
            "floor_s": 0.25,
            "share_of_floor": 0.25 / ratio,
            "commit": "abc",
        }
        for (subject, shape), case in ways.items()
        for way, ratio in case.items()
    )


def test_a_gain_is_told_at_the_same_precision_and_against_float32():
    gains = results.summary(compared()).set_index("what")
    step = gains.loc["step (small, mixed precision)"]
    assert step["instead of"] == "plain"
    assert step["times faster in one process"] == "2.0"
    assert step["times faster than as people run it"] == "3.0"
    assert step["times faster than in float32"] == "4.0"
    assert step["memory"] == "2.0 × less"
    reading = gains.loc["reading (10 tokens)"]
    assert reading["times faster than as people run it"] == ""
    assert reading["times faster than in float32"] == ""
    assert reading["memory"] == "2.0 × more"
    assert results.in_words(1.02) == "the same"


def test_the_plot_has_a_row_a_case_and_a_marker_an_alternative():
    others = results.alternatives(compared())
    assert others["at"].tolist() == [0, 1, 1, 1, 2, 2]
    assert others["kind"].tolist() == [
        results.USUAL,
        results.USUAL,
        results.USUAL_IN_FLOAT32,
        results.USUAL_AS_RUN,
        results.USUAL,
        "another loop",
    ]
    figure = results.draw(compared())
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == [
        "step, float32\nsmall",
        "step, mixed precision\nsmall",
        "reading\n10 tokens",
    ]
    [legend] = figure.legends
    assert len(legend.get_texts()) == 4
    plt.close(figure)


def test_a_column_that_no_subject_fills_is_left_out():
    table = compared()
    table = table[~table["way"].str.contains(", ")]
    columns = set(results.summary(table))
    assert {"ours", "times faster in one process"} <= columns
    assert not columns & {"times faster than as people run it", "times faster than in float32"}


def test_without_any_other_way_there_is_nothing_to_gain_or_draw(tmp_path, monkeypatch):
    alone = compared().query("way == 'ours'")
    assert results.has_alternatives(compared())
    assert not results.has_alternatives(alone)
    benchmark = command.BENCHMARKS[0]
    monkeypatch.setattr(command.harness, "machine", lambda: command.harness.Machine(1.0, 1.0, 1.0))
    rows = alone.to_dict("records")
    monkeypatch.setattr(command.harness, "compare", lambda benchmark, of, repeats: rows)
    command.write_comparisons(tmp_path, [benchmark], None)
    assert pd.read_csv(tmp_path / "benchmarks.csv")["way"].tolist() == ["ours"] * 3
    assert not (tmp_path / "benchmarks.png").exists()


def test_what_is_missing_is_blank():
    shown = results.for_people(compared())
    assert set(shown["tokens/s"]) == {""}
    assert shown["of the floor"].tolist()[:2] == ["25%", "17%"]


def points(time_exponent: float) -> pd.DataFrame:
    """A line whose memory and arithmetic are in proportion to the size."""
    sizes = np.array([10, 100, 1000, 10_000])
    return pd.DataFrame(
        {"subject": "s", "axis": "words", "size": sizes}
        | {"median_s": 3 * sizes**time_exponent, "peak_mb": 2.0 * sizes, "arithmetic": 7 * sizes}
    )


def test_fitted_slopes_are_those_of_power_laws():
    fitted = growth.slopes(points(1.5)).iloc[0]
    assert fitted["time"] == pytest.approx(1.5)
    assert fitted["memory"] == pytest.approx(1.0)
    assert fitted["arithmetic"] == pytest.approx(1.0)


@pytest.mark.parametrize(("exponent", "flag"), [(1.1, ""), (1.2, "time")])
def test_what_grows_faster_than_its_arithmetic_is_flagged(exponent, flag):
    fitted = growth.slopes(points(exponent))
    assert fitted["grows_faster"].tolist() == [flag]
    assert growth.for_people(fitted)["faster than the arithmetic"].tolist() == [flag or "–"]


@pytest.mark.parametrize("subject", growth.AXES)
def test_every_growing_subject_has_arithmetic(subject):
    build, shape, axes = growth.AXES[subject]
    axis, (size, *_) = next(iter(axes.items()))
    assert growth.arithmetic(subject, size, build(**shape | {axis: size})) > 0


def test_the_time_of_a_run_is_that_of_its_trainings_and_notebooks():
    table = whole.stages("quick")
    assert set(table["what"]) == {"training", "notebook"}
    assert {"section 3, seed 0: discriminators", "mos_ptb: fine-tuning"} <= set(table["stage"])
    assert table["stage"].is_unique
    assert table["seconds"].is_monotonic_decreasing
    assert table["share"].sum() == pytest.approx(1)
    assert len(whole.for_people(table)) == len(table) + 1


FAKE = """import os, sys
with open(os.environ["PAPERLIB_RUNS"] + ".txt", "a") as file:
    print(*sys.argv[1:], file=file)
sys.exit(os.path.exists("broken"))
"""


def test_a_whole_run_is_timed_in_a_clone_with_runs_of_its_own(tmp_path, monkeypatch):
    project, seen = tmp_path / "a project", []
    (project / "paperlib").mkdir(parents=True)
    (project / "paperlib/__main__.py").write_text(FAKE)

    def git(*arguments: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", project, *names, *arguments], check=True, capture_output=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    monkeypatch.setattr(whole.paths, "PROJECT", project)
    real = whole.subprocess.run

    def run(arguments, **options):
        done = real(arguments, **options)
        if "paperlib" in arguments:
            seen.append((options["env"]["PAPERLIB_RUNS"], options["cwd"]))
        return done

    monkeypatch.setattr(whole.subprocess, "run", run)
    table = whole.measure("quick")
    assert table["run"].tolist() == ["from nothing", "again, with nothing to do"]
    assert (table["seconds"] > 0).all()
    table.assign(instructions="older").to_csv(tmp_path / "whole.csv", index=False)
    both = whole.with_others(tmp_path / "whole.csv", table)
    assert both["instructions"].tolist() == ["older"] * 2 + table["instructions"].tolist()
    both.to_csv(tmp_path / "whole.csv", index=False)
    assert whole.with_others(tmp_path / "whole.csv", table).equals(both)
    assert len(set(seen)) == 1
    runs, checkout = seen[0]
    assert runs.endswith("runs")
    assert checkout.parent != project

    (project / "broken").touch()
    git("add", ".")
    git("commit", "-m", "broken")
    with pytest.raises(whole.RunError, match="the run of profile quick failed"):
        whole.measure("quick")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nothing",), "there is no benchmark 'nothing'; choose from"),
        (("--repeats", "2"), "--repeats must be at least 3, not 2"),
        (("--threads", "0"), "--threads must be from 1 to"),
    ],
)
def test_wrong_arguments_are_one_clear_sentence(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    with pytest.raises(SystemExit) as ended:
        command.arguments()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_without_bfloat16_low_precision_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "has_bfloat16", lambda: False)
    command.write_low_precision(tmp_path)
    assert "left out, because the hardware has no LSTM in bfloat16" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_not_run_again_stays_only_from_the_same_hardware(tmp_path):
    subjects = list(dict.fromkeys(benchmark.subject for benchmark in command.BENCHMARKS))
    old = pd.DataFrame({"subject": [*subjects[:3], subjects[2]], "way": list("abcd")})
    new = pd.DataFrame({"subject": [subjects[1]], "way": ["new"]})

    def ways() -> list[str]:
        return results.with_others(tmp_path, new, subjects)["way"].tolist()

    assert ways() == ["new"]

    old.to_csv(tmp_path / "benchmarks.csv", index=False)
    save_json(tmp_path / "machine.json", {"float32": 1.0} | hardware.describe())
    assert ways() == ["a", "new", "c", "d"]

    save_json(tmp_path / "machine.json", hardware.describe() | {"torch_threads": 99})
    assert ways() == ["new"]


def test_titles_tell_the_number_of_threads():
    assert results.where().endswith(f"threads: {torch.get_num_threads()}")


def test_hours_are_those_of_the_steps_that_an_epoch_has(tmp_path):
    profile = settings.load("paper")
    training = profile.corpora["mos_ptb"].language_model
    length = gpu_hours.TOKENS["ptb"] // training.batch_size
    rng = np.random.default_rng(0)
    longest = training.bptt + training.bptt_excess
    counts = [len(pieces(length, training.bptt, longest, rng)) for _ in range(30)]
    expected = gpu_hours.steps_of_epoch(training, gpu_hours.TOKENS["ptb"])
    assert expected == pytest.approx(np.mean(counts), rel=0.01)

    steps = [("language model", "paper, mixture on Penn Treebank (12 streams)", 10.0)]
    steps += [("discriminator", "medium, mixture on Penn Treebank", 36.0)]
    pd.DataFrame(steps, columns=["step", "of", "ms"]).to_csv(tmp_path / "gpu_steps.csv")
    table = gpu_hours.hours(tmp_path).set_index(["experiment", "training"])
    assert set(table.index.get_level_values(0)) == set(profile.corpora)
    first = table.loc[("mos_ptb", "language model")]
    assert first["hours"] == pytest.approx(training.max_epochs * expected * 10 / 3.6e6)
    assert not first["bound"]
    assert table.loc[("mos_ptb", "discriminator"), "bound"]
    shown = gpu_hours.for_people(table.reset_index())
    assert (shown["hours"] == "not measured").sum() == len(table) - 3
