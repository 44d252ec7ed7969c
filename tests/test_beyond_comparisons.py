"""Fine-tunings against one another, and who gains: paired by sentence, with intervals."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from paperlib.beyond import NONE, BeyondStudy, Variant
from paperlib.beyond_comparisons import Comparisons
from paperlib.beyond_measures import ExactContexts, p_hat_by_class
from paperlib.beyond_words import FREQUENT, Changes
from paperlib.corpus_study import CorpusStudy
from paperlib.estimates import CANNOT_TELL, UNCHANGED
from paperlib.settings import load


@pytest.fixture(scope="module")
def study():
    return BeyondStudy(load("smoke").synthetic)


def test_comparisons_are_paired_by_sentence(study):
    compare = Comparisons(study)
    same = compare.difference("perturbed", "perturbed")
    assert (same["difference"], same["low"], same["high"], same["verdict"]) == (0, 0, 0, UNCHANGED)
    tuned = Variant(NONE)
    found = compare.difference(tuned, "perturbed")
    levels = [compare.perplexity(model) for model in (tuned, "perturbed")]
    assert found["difference"] == pytest.approx(levels[0] - levels[1])
    assert found["low"] <= found["difference"] <= found["high"]
    models = (study.tuned(tuned).model, study.perturbed)
    one, other = (
        level * study.log_q(model, study.test).sum(axis=1)
        for level, model in zip(levels, models, strict=True)
    )
    error = np.std(one - other) * len(study.test) ** 0.5 / study.test.size  # first order
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.3)


def test_the_shares_won_back_are_differences_of_log_perplexity(study):
    compare, variant = Comparisons(study), Variant(NONE)
    levels = {m: math.log(compare.perplexity(m)) for m in ("initial", "perturbed", variant)}
    expected = (levels["perturbed"] - levels[variant]) / (levels["perturbed"] - levels["initial"])
    assert compare.recovered(variant)["recovered"] == pytest.approx(expected)
    assert compare.recovered(variant, variant)["recovered"] == 0


def test_every_question_with_fine_tunings_compares_some(study):
    table = Comparisons(study).table()
    assert set(table["question"]) == {1, 3, 4, 5}
    assert (table["low"] <= table["high"]).all()
    includes_zero = (table["low"] <= 0) & (table["high"] >= 0)
    assert (table["verdict"].isin([CANNOT_TELL, UNCHANGED]) == includes_zero).all()


def test_who_gains_covers_every_test_word_once_a_model(study):
    tuned, start = study.finetuned("perturbed").model, study.perturbed
    gain = (study.log_q(tuned, study.test) - study.log_q(start, study.test)).mean()
    changes = Changes.on_sentences(study, "perturbed")
    rows = changes.by_bin(resamples=100, seed=0)
    assert rows["tokens"].sum() == study.test.size
    assert np.average(rows["mean"], weights=rows["tokens"]) == pytest.approx(gain)
    groups = changes.of_groups(resamples=100, seed=0)
    chosen = (study.test == study.chosen).sum()
    assert groups["tokens"].sum() == study.test.size - chosen
    assert (groups["low"] <= groups["mean"]).all()
    assert (groups["mean"] <= groups["high"]).all()


def test_on_running_text_the_end_of_a_sentence_is_no_word():
    """Word by word, from ranks counted by hand; by its count, ``<eos>`` would be frequent."""
    study = CorpusStudy(load("smoke"), "mos_ptb")
    corpus = study.corpus
    changes = Changes.on_text(study)
    words = [word for word in corpus.test.tolist() if word != corpus.eos]
    assert changes.words.tolist() == words
    before, after = (
        study.token_log_probs(one)["test"].astype(float)
        for one in (study.initial, study.finetuned())
    )
    sentences, number = [], 0
    for word in corpus.test.tolist():
        if word == corpus.eos:
            number += 1
        else:
            sentences.append(number)
    assert changes.sentences.tolist() == sentences

    seen = Counter(word for word in corpus.train.tolist() if word != corpus.eos)
    order = sorted((word for word in range(corpus.n_words)), key=lambda word: (-seen[word], word))
    frequent = set(order[:FREQUENT])
    assert Counter(corpus.train.tolist())[corpus.eos] > seen[order[FREQUENT]]
    at = [k for k, word in enumerate(corpus.test.tolist()) if word in frequent - {corpus.eos}]
    groups = changes.of_groups(resamples=50, seed=0).set_index("words")
    assert groups.loc["frequent", "tokens"] == len(at)
    assert groups.loc["frequent", "mean"] == pytest.approx((after - before)[at].mean())
    ends = corpus.test == corpus.eos
    assert groups.loc["<eos>", "tokens"] == ends.sum()
    assert groups.loc["<eos>", "mean"] == pytest.approx((after - before)[ends].mean())
    assert changes.by_bin(resamples=50, seed=0)["tokens"].sum() == len(words)


def test_where_p_hat_parts_from_p_sentence_by_sentence(study):
    """The chosen word's rows again: log-probabilities written out, sentences drawn one by one."""
    sentences = study.beyond.sentences
    words = torch.from_numpy(study.test[:sentences].astype(np.int64))
    at = study.chosen
    log_p = np.empty(tuple(words.shape))
    for number, sentence in enumerate(words.tolist()):
        history = [0, 0, *(word + 1 for word in sentence)]
        for position in range(len(sentence)):
            p = study.language.next_word_probs(history[position], history[position + 1])
            log_p[number, position] = np.log(p[at])
    words = words.to(study.device)
    with torch.no_grad():
        log_q0 = study.perturbed(words).double().log_softmax(-1)[..., at].cpu().numpy()
        z = study.discriminator("perturbed").model(words)[..., at].double().cpu().numpy()
    squares = {"q₀": (log_q0 - log_p) ** 2, "p̂ (discriminator)": (log_q0 - z - log_p) ** 2}
    rms = {name: np.sqrt(values.mean()) for name, values in squares.items()}

    table = p_hat_by_class(ExactContexts(study))
    rows = table[table["class"] == "chosen word"].set_index("estimate")
    for name, value in rms.items():
        assert rows.loc[name, "rms"] == pytest.approx(value, rel=1e-4)
    ours, start = (rows.loc[name] for name in ("p̂ (discriminator)", "q₀"))
    change = rms["p̂ (discriminator)"] / rms["q₀"] - 1
    assert ours["change"] == pytest.approx(change, abs=1e-4)
    assert not start[["change", "change_low", "change_high"]].any()

    rng = np.random.default_rng(5)
    new, old = squares["p̂ (discriminator)"], squares["q₀"]
    drawn = []
    for _ in range(2000):
        some = rng.integers(sentences, size=sentences)  # the same for both: paired
        rms_of_some = np.sqrt(new[some].mean())
        drawn.append((rms_of_some, rms_of_some / np.sqrt(old[some].mean()) - 1))
    for name, values in zip(("rms", "change"), np.transpose(drawn), strict=True):
        ends = np.quantile(values, [0.025, 0.975])
        found = ours[[f"{name}_low", f"{name}_high"]].astype(float)
        np.testing.assert_allclose(found, ends, atol=0.2 * (ends[1] - ends[0]))
