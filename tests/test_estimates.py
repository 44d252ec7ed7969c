"""Intervals: against known statistics, and what they are over."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from paperlib import estimates
from paperlib.evaluation import (
    FrequencyClasses,
    perplexity,
    table1_from_sums,
    table1_row,
    table1_sums,
)


def test_interval_over_seeds_is_students():
    values = [1.0, 2.0, 4.0, 5.5]
    found = estimates.over_seeds(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.basis == "t interval over 4 seeds"
    assert (found.seeds, found.sd) == (4, pytest.approx(np.std(values, ddof=1)))


def test_a_single_value_has_no_interval_and_says_so():
    for found in (estimates.over_seeds([3.0]), estimates.of_one_more([3.0], "languages")):
        assert found.value == 3.0
        assert np.isnan([found.low, found.high, found.sd]).all()
        assert (found.basis, found.seeds) == (estimates.ONE_RUN, 1)


def test_a_number_known_from_below_has_no_upper_end():
    found = estimates.Estimate.at_least(3, estimates.LIMITED)
    assert (found.value, found.low, found.high) == (3.0, 3.0, np.inf)


def test_an_exact_number_is_its_own_interval():
    found = estimates.Estimate.exact(3.0)
    assert (found.value, found.low, found.high, found.basis) == (3.0, 3.0, 3.0, estimates.EXACT)


def test_quotients_are_averaged_by_their_logarithms():
    quotients = [2.0, 8.0]
    found = estimates.over_seeds(quotients, quotients=True)
    logs = estimates.over_seeds(np.log(quotients))
    assert found.value == pytest.approx(4.0)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp([logs.low, logs.high])))
    upside_down = estimates.over_seeds([1 / value for value in quotients], quotients=True)
    assert (upside_down.low, upside_down.high) == pytest.approx((1 / found.high, 1 / found.low))
    assert found.low > 0


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-2, -1, "lower"),
        (1, 2, "higher"),
        (-1, 1, "cannot tell"),
        (0, 1, "cannot tell"),
        (-1, 0, "cannot tell"),
        (0, 0, "unchanged"),
        (float("nan"), float("nan"), "cannot tell"),
    ],
)
def test_a_direction_looks_at_the_interval(low, high, says):
    assert estimates.direction(low, high) == says


def test_interval_for_one_more_covers_one_more():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        *known, one_more = rng.normal(size=7)
        found = estimates.of_one_more(known, "draws")
        hits += found.low <= one_more <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.02)


def test_seeds_are_paired_and_a_single_one_is_resampled():
    def difference(row):
        return row["after"] - row["before"]

    shifts = (0.0, 10.0, -30.0)
    seeds = [{"before": shift, "after": shift + 1 + 0.01 * shift} for shift in shifts]
    resampled = {"before": np.zeros(1000), "after": np.linspace(0, 2, 1000)}
    several = estimates.estimate(difference, seeds, resampled, "test sentences")
    assert several.high - several.low < 2  # unpaired, it would be tens
    single = estimates.estimate(difference, seeds[:1], resampled, "test sentences")
    assert single.value == 1
    assert (single.low, single.high) == pytest.approx((0.05, 1.95), abs=1e-9)
    assert single.basis == "bootstrap over test sentences"


def test_bootstrap_agrees_with_the_standard_error_of_a_mean():
    values = np.random.default_rng(1).normal(5, 2, size=4000)
    mean, low, high = estimates.interval_of_mean(values, 2000, 0)
    error = stats.sem(values)
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=error / 5)


@given(n=st.integers(2, 30), resamples=st.integers(1, 600))
def test_resamples_have_as_many_units_and_are_paired(n, resamples):
    sums = np.stack([np.ones(n), np.arange(n, dtype=float)], axis=-1)
    drawn = estimates.resampled_sums(sums, resamples)
    assert drawn.shape == (resamples, 2)
    assert (drawn[:, 0] == n).all()
    assert np.array_equal(drawn[:, 1], estimates.resampled_sums(sums[:, 1:], resamples)[:, 0])


def sentences(n, seed=0):
    """Word ids, classes, and log-probabilities of a model and of the truth."""
    rng = np.random.default_rng(seed)
    ids = np.minimum(rng.geometric(0.2, size=(n, 5)) - 1, 11)
    classes = FrequencyClasses.of(ids, 12, frequent=3, almost_frequent=4)
    log_q, log_p = -rng.gamma(2, size=(n, 5)), -rng.gamma(2, size=(n, 5))
    return log_q, log_p, ids, classes


def test_row_of_table_1_is_what_its_columns_say():
    log_q, log_p, ids, classes = sentences(40)
    row = table1_row(log_q, log_p, ids, classes, chosen=4)
    frequent = np.isin(ids, classes.frequent)
    assert row["test_ppl"] == pytest.approx(perplexity(log_q))
    assert row["ratio"] == pytest.approx(perplexity(log_q[~frequent]) / perplexity(log_q[frequent]))
    assert row["diff_mean"] == pytest.approx((log_q - log_p).mean())
    assert row["diff_std"] == pytest.approx((log_q - log_p).std())
    assert row["other_ppl"] == pytest.approx(perplexity(log_q[ids != 4]))
    assert row["rare_other_ppl"] == pytest.approx(perplexity(log_q[(ids != 4) & ~frequent]))


def test_resampled_table_1_is_that_of_the_sentences_drawn():
    log_q, log_p, ids, classes = sentences(30)
    sums = table1_sums(log_q, log_p, ids, classes, 4)
    drawn = table1_from_sums(estimates.resampled_sums(sums, resamples=1, seed=3))
    (weights,) = estimates.bootstrap_weights(30, 1, 3)
    some = np.repeat(np.arange(30), weights[0])
    expected = table1_row(log_q[some], log_p[some], ids[some], classes, 4)
    assert {name: float(value[0]) for name, value in drawn.items()} == pytest.approx(expected)


def test_the_error_of_a_texts_mean_is_that_over_its_stretches():
    rng = np.random.default_rng(0)
    one = rng.normal(3, 2, 10_007)
    assert estimates.error_of_mean(one) == pytest.approx(2 / len(one) ** 0.5, rel=0.2)
    # Equal stretches: the standard error of the mean of their means.
    equal = np.repeat(rng.normal(size=estimates.STRETCHES), 7)  # words next to each other alike
    assert estimates.error_of_mean(equal) == pytest.approx(stats.sem(equal[::7]))
    means, draws = estimates.means_of_stretches([equal, 2 * equal])
    assert means == pytest.approx([equal.mean(), 2 * equal.mean()])
    assert draws[:, 1] == pytest.approx(2 * draws[:, 0])  # drawn together
    assert draws[:, 0].std() == pytest.approx(stats.sem(equal[::7]), rel=0.1)


def test_an_interval_from_a_standard_error_is_students():
    values = np.array([1.0, 2.0, 4.0, 5.5])
    found = estimates.from_error(values.mean(), stats.sem(values), len(values), "so")
    expected = estimates.over_seeds(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.basis == "so"


@pytest.mark.parametrize("n", [2, 200, 300])
def test_weights_that_are_kept_are_those_that_were_drawn(n, monkeypatch):
    kept = [np.concatenate(list(estimates.bootstrap_weights(n, 600, 1))) for _ in range(2)]
    assert kept[0].dtype.itemsize < 8
    monkeypatch.setattr(estimates, "KEPT", 0)
    drawn = np.concatenate(list(estimates.bootstrap_weights(n, 600, 1)))
    assert drawn.shape == (600, n)
    assert (drawn.sum(axis=1) == n).all()
    for weights in kept:
        np.testing.assert_array_equal(weights, drawn)
