"""Measures of dynamic evaluation, from log-probabilities that are made up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from paperlib.estimates import NO_GAIN, ONE_RUN
from paperlib.evaluation import perplexity
from paperlib.reporting.claims import PARTLY, REPRODUCED, declared
from paperlib.reporting.dynamic_measures import of_dynamic


def study_of(static, dynamic, *, kept=True):
    """A study whose models are their own names, with log q at the tokens of both texts by model."""

    def levels(log_q):
        return dict.fromkeys(("valid", "test"), perplexity(log_q))

    def tokens(log_q):
        return dict.fromkeys(("valid", "test"), log_q)

    return SimpleNamespace(
        name="study",
        settings=SimpleNamespace(dynamic=True),
        initial="initial",
        finetuned=lambda: "finetuned",
        perplexities=lambda model: levels(static[model]),
        token_log_probs=lambda model: tokens(static[model]),
        dynamic=lambda model: levels(dynamic[model]),
        dynamic_log_probs=lambda model: tokens(dynamic[model]) if kept else None,
    )


def log_q(initial, finetuned, seed=0, noise=0.3, size=5000):
    """Tokens whose perplexities are about these, the difference with noise of its own."""
    rng = np.random.default_rng(seed)
    words = -rng.gamma(4, 0.25, size) * math.log(initial)
    change = math.log(initial / finetuned) + noise * rng.standard_normal(size)
    return {"initial": words, "finetuned": words + change}


def test_without_a_profile_that_runs_it_there_is_nothing():
    assert of_dynamic(SimpleNamespace(settings=SimpleNamespace(dynamic=None))) == {}


def test_differences_and_share_have_intervals_over_stretches_of_the_text():
    static, dynamic = log_q(60, 57), log_q(50, 49.5, seed=1)
    found = of_dynamic(study_of(static, dynamic))
    level = {name: perplexity(values) for name, values in dynamic.items()}
    change = found["study.finetuned_dynamic-initial_dynamic.test_ppl"]
    assert change.value == pytest.approx(level["finetuned"] - level["initial"])
    # To first order: the level times the standard error of the mean change.
    difference = dynamic["finetuned"] - dynamic["initial"]
    error = level["initial"] * np.std(difference) / len(difference) ** 0.5
    assert change.high - change.low == pytest.approx(2 * 1.96 * error, rel=0.2)
    gains = [np.mean(one["finetuned"] - one["initial"]) for one in (dynamic, static)]
    share = found["study.dynamic_share"]
    assert share.value == pytest.approx(gains[0] / gains[1])
    assert share.low < share.value < share.high < 1
    verdict, _ = declared()["dynamic_mild"].verdict(share.value, share.low, share.high, share.basis)
    assert verdict == REPRODUCED


def test_a_share_of_a_gain_that_may_be_none_may_be_anything():
    found = of_dynamic(study_of(log_q(60, 59.9, noise=2.0, seed=3), log_q(50, 49.99)))
    share = found["study.dynamic_share"]
    assert math.isfinite(share.value)
    assert (share.low, share.high) == (-math.inf, math.inf)
    claim = declared()["dynamic_mild"]
    verdict, reason = claim.verdict(share.value, share.low, share.high, share.basis)
    assert verdict == PARTLY
    assert "too wide" in reason


@pytest.mark.parametrize("kept", [True, False])
def test_without_a_gain_there_is_no_share(kept):
    for finetuned in (60, 63):
        static = log_q(60, finetuned, noise=0)
        share = of_dynamic(study_of(static, log_q(50, 49), kept=kept))["study.dynamic_share"]
        assert math.isnan(share.value)
        assert share.basis == NO_GAIN


def test_results_of_an_earlier_version_are_numbers_without_interval():
    static, dynamic = log_q(60, 57), log_q(50, 49.5, seed=1)
    earlier, now = (of_dynamic(study_of(static, dynamic, kept=kept)) for kept in (False, True))
    assert earlier.keys() == now.keys()
    for name, one in earlier.items():
        assert one.value == pytest.approx(now[name].value)
        assert one.basis == ONE_RUN
