"""What is timed side by side is the same piece of work, at a size that takes no time."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CHECKOUT

from benchmarks import __main__ as command
from benchmarks import growth, harness, heads, large, sampling, sentences, shards, texts, whole
from paperlib import hardware
from paperlib.checkpoints import save_json

TINY = {"tokens": 6, "experts": 3, "words": 40, "width": 5}


@pytest.mark.parametrize("build", [heads.model, heads.discriminator])
def test_the_ways_of_a_head_have_the_same_gradients(build):
    ours, plain = (way() for way in build(**TINY).ways.values())
    for mine, theirs in zip(ours, plain, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_differentiated_softmax_is_the_full_one_with_zero_blocks():
    heads_of = large.Heads(tokens=9, words=50, mixed=False)
    with torch.no_grad():
        heads_of.weights.copy_(torch.block_diag(*heads_of.head.weights))
    mine, full, plain = heads_of.differentiated(), heads_of.full(), heads_of.plain(False)
    torch.testing.assert_close(full, plain, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mine[0], full[0], rtol=1e-4, atol=1e-6)
    assert torch.block_diag(*heads_of.head.weights).count_nonzero() == sum(
        weights.numel() for weights in heads_of.head.weights
    )


@pytest.mark.parametrize("build", [heads.model, heads.discriminator])
def test_in_mixed_precision_the_gradients_are_close(build):
    ways = build(**TINY | {"width": 64}, mixed=True).ways
    ours, exact = ways["ours"](), list(ways.values())[-1]()
    for mine, theirs in zip(ours, exact, strict=True):
        difference = (mine - theirs).norm() / theirs.norm()
        assert difference < 0.02


@pytest.mark.parametrize(
    "build", [sentences.language_model, sentences.discriminator, sentences.finetuning]
)
def test_the_ways_of_a_step_have_the_same_loss_step_after_step(build):
    ways = build(profile="smoke", words=50, batch=8).ways
    ours, plain = list(ways.values())[:2]
    for _ in range(3):
        assert ours() == pytest.approx(plain(), rel=1e-5)


def test_the_ways_of_evaluation_have_the_same_perplexity(monkeypatch):
    monkeypatch.setattr(texts, "WORDS", 50)
    ours, published = texts.evaluation(profile="smoke", tokens=400).ways.values()
    assert ours() == pytest.approx(np.exp(-published()), rel=1e-4)


def test_the_ways_of_dynamic_evaluation_have_the_same_sum(monkeypatch):
    monkeypatch.setattr(texts, "WORDS", 50)
    ours, published = texts.dynamic_evaluation(profile="smoke", tokens=30).ways.values()
    assert ours().sum().item() == pytest.approx(published(), rel=1e-4)


def test_the_ways_of_reading_text_find_as_many_tokens():
    ours, plain = shards.both_passes(size=100_000).ways.values()
    assert ours() == plain() > 10_000


def test_dense_samples_follow_the_languages_distribution():
    """Frequencies of the second word, given nothing, against exact probabilities."""
    for sample in (sampling.sample_dense, sampling.sample_multinomial):
        language = sampling.TrigramLanguage(n_words=8)
        first = language.next_word_probs(0, 0)
        words = np.arange(1, 9)
        exact = first @ language.next_word_probs(0, words)
        drawn = np.bincount(sample(8, 20_000)[:, 1], minlength=9)[1:] / 20_000
        assert np.abs(drawn - exact).max() < 6 * 0.5 / 20_000**0.5


def test_the_scores_are_the_same():
    mine, theirs = (way() for way in sampling.score(n_words=20, sentences=10).ways.values())
    np.testing.assert_allclose(mine, theirs, rtol=1e-10)


def test_rows_hold_times_memory_and_ratios_to_ours():
    case = {"tokens": 50, "experts": 4, "words": 5000, "width": 8}
    benchmark = harness.Benchmark("head", "tiny", heads.model, case)
    rows = pd.DataFrame(harness.compare(benchmark, harness.Machine(1e9, 2e9, 1e9), repeats=2))
    assert rows["way"].tolist() == ["ours", "published formulation"]
    assert rows["times_ours"].iloc[0] == rows["times_our_memory"].iloc[0] == 1
    assert (rows["min_s"] <= rows["median_s"]).all()
    assert (rows["median_s"] <= rows["max_s"]).all()
    # 2 · 3 products of 50 · 4 · 5000 logits with vectors of 8, at 10⁹ operations a second.
    assert rows["floor_s"].tolist() == pytest.approx([6 * 1e6 * 8 / 1e9] * 2)
    logits_mb = 4 * 1e6 / 2**20
    assert (rows["peak_mb"] > logits_mb).all()


def test_fitted_slopes_are_those_of_power_laws():
    sizes = np.array([10, 100, 1000, 10_000])
    points = pd.DataFrame(
        {"subject": "s", "axis": "words", "size": sizes}
        | {"median_s": 3 * sizes**1.5, "peak_mb": 2.0 * sizes}
    )
    fitted = growth.slopes(points).iloc[0]
    assert fitted["time"] == pytest.approx(1.5)
    assert fitted["memory"] == pytest.approx(1.0)


def test_the_time_of_a_run_is_that_of_its_trainings_and_notebooks():
    table = whole.stages("quick")
    assert "training" in set(table["kind"])
    assert table["seconds"].is_monotonic_decreasing
    assert (table["seconds"] >= 0).all()


def test_an_unknown_benchmark_is_one_clear_sentence():
    command = [sys.executable, "-m", "benchmarks", "nothing"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "there is no benchmark 'nothing'; choose from" in done.stderr


def test_what_is_not_run_again_stays_only_from_the_same_hardware(tmp_path):
    subjects = list(dict.fromkeys(benchmark.subject for benchmark in command.BENCHMARKS))
    old = pd.DataFrame({"subject": [*subjects[:3], subjects[2]], "way": list("abcd")})
    new = pd.DataFrame({"subject": [subjects[1]], "way": ["new"]})
    assert command.with_others(tmp_path, new)["way"].tolist() == ["new"]

    old.to_csv(tmp_path / "benchmarks.csv", index=False)
    save_json(tmp_path / "machine.json", {"float32": 1.0} | hardware.describe())
    assert command.with_others(tmp_path, new)["way"].tolist() == ["a", "new", "c", "d"]

    save_json(tmp_path / "machine.json", hardware.describe() | {"torch_threads": 99})
    assert command.with_others(tmp_path, new)["way"].tolist() == ["new"]
