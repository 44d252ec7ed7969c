"""What is timed side by side is the same piece of work, at a size that takes no time."""

import numpy as np
import pytest
import torch
from conftest import needs_bfloat16

from benchmarks import (
    epochs,
    heads,
    large,
    low_precision,
    sampling,
    sentences,
    shards,
    texts,
)
from paperlib import settings

TINY = {"tokens": 6, "experts": 3, "words": 40, "width": 5}


@pytest.mark.parametrize("build", [heads.model, heads.discriminator])
def test_the_ways_of_a_head_have_the_same_gradients(build):
    ours, plain, *_ = build(**TINY).ways.values()
    for mine, theirs in zip(ours(), plain(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not heads.can_compile(), reason="torch.compile cannot compile here")
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # from within torch.compile
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # a GPU's, which we do not want
def test_the_compiled_head_has_the_same_gradients():
    ways = heads.model(**TINY).ways
    compiled = ways["published formulation, torch.compile"]()
    for mine, theirs in zip(ways["ours"](), compiled, strict=True):
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
    exact = next(way for name, way in ways.items() if name.endswith(", float32"))
    for mine, theirs in zip(ways["ours"](), exact(), strict=True):
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


def test_the_floor_of_the_frozen_scalars_is_that_of_two_forward_passes():
    case = sentences.finetuning(profile="smoke", words=50, batch=8)
    scalars = case.work_of["computing the scalars, once"]
    assert scalars.operations == pytest.approx(case.work.operations * 2 / 3)
    assert not scalars.mixed


@pytest.mark.parametrize(
    ("build", "shape"),
    [(epochs.of_sentences, {"words": 50, "batch": 8}), (epochs.of_text, {"words": 50})],
)
def test_the_ways_of_whole_epochs_end_with_the_same_loss(build, shape):
    case = build("smoke", **shape)
    ours, recomputed, *_ = case.ways.values()
    assert ours() == pytest.approx(recomputed(), rel=1e-4)
    of_cross_entropy = case.work_of[epochs.CROSS_ENTROPY]
    assert of_cross_entropy.operations < case.work.operations


def with_language_model(profile: str, **changes):
    """A profile whose mixture of softmaxes is trained in another way."""
    loaded = settings.load(profile)
    experiment = loaded.corpora["mos_ptb"]
    training = experiment.language_model.model_copy(update=changes)
    experiment = experiment.model_copy(update={"language_model": training})
    return loaded.model_copy(update={"corpora": {"mos_ptb": experiment}})


@pytest.mark.parametrize(
    "changes",
    [{}, {"regularised": False}, {"weight_decay": 10.0}, {"optimizer": "adam"}],
    ids=["dropout", "without dropout", "weight decay", "adam"],
)
def test_the_ways_of_a_training_step_have_the_same_loss_step_after_step(changes, monkeypatch):
    profile = with_language_model("smoke", **changes)
    monkeypatch.setattr(texts.settings, "load", lambda name: profile)
    ours, published = texts.training_step(profile="smoke", words=50).ways.values()
    losses = [(ours(), published()) for _ in range(4)]
    for mine, theirs in losses:
        assert mine == pytest.approx(theirs, rel=1e-5)
    assert len(set(losses)) == 4


def test_the_ways_of_evaluation_have_the_same_perplexity():
    ours, published = texts.evaluation(profile="smoke", tokens=400, words=50).ways.values()
    assert ours() == pytest.approx(np.exp(-published()), rel=1e-4)


def test_the_ways_of_dynamic_evaluation_have_the_same_sum():
    """Rate and decay are high enough to tell what is moved and how far it decays, and the rate low
    enough that no probability comes near the 1e-8 that the published code adds to it."""
    sums = {}
    for rate in (1e-12, 2e-3):
        update = settings.DynamicUpdate(decay=0.5, learning_rate=rate)
        case = texts.dynamic_evaluation(profile="smoke", tokens=30, words=50, update=update)
        ours, published = case.ways.values()
        sums[rate] = ours().sum().item()
        assert sums[rate] == pytest.approx(published(), rel=1e-5)
    assert sums[2e-3] != pytest.approx(sums[1e-12], rel=1e-3)


def test_the_ways_of_reading_text_find_as_many_tokens():
    case = shards.both_passes(size=100_000)
    ours, plain = case.ways.values()
    assert ours() == plain() == case.tokens > 10_000


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


@needs_bfloat16
def test_low_precision_has_a_row_a_network_and_precision(monkeypatch):
    monkeypatch.setenv("PAPERLIB_BAR_LINE", "-1")
    table = low_precision.measure("smoke", epochs=1)
    assert table["network"].nunique() == 2
    assert table["training"].tolist() == ["float32", "mixed"] * 2
    assert (table["log_q_largest"] > 0).all()
