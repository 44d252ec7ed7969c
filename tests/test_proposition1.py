"""Proposition 1 against hand computation, finite differences, autograd and direct minimisation."""

import math

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize

from paperlib import proposition1
from paperlib.losses import finetuning_loss
from paperlib.proposition1 import (
    EPSILON,
    P_HAT,
    Q,
    autograd_errors,
    coefficient,
    cross_entropy_coefficient,
    derive_coefficients,
    derive_expansion,
    equal_step_ratios,
    expansion,
    expansion_limit,
    loss,
    minimiser,
    printed_expansion,
    printed_proof,
    remainder_slopes,
    step_ratio,
)

PROBABILITY = st.floats(1e-12, 1, exclude_min=True, exclude_max=True)
P_HATS = (0.5, 1e-2, 1e-4, 1e-6)
SIDES = (-1, 1)


# Formulas


def test_by_hand():
    assert loss(0.25, 0.5) == pytest.approx(2 * math.log(2) - 0.5 * math.log(2), rel=1e-15)
    assert cross_entropy_coefficient(0.25) == -4
    assert coefficient(0.5, 0.25) == pytest.approx(-2 + 4 * (1 + math.log(2)), rel=1e-15)
    assert coefficient(0.01, 1.0) == pytest.approx(-100 + 1 - math.log(100), rel=1e-15)
    # p̂ = 1/10, ε = 1/100: 2ε/p̂² = 2 and (3/2)ε²/p̂³ = 0.15.
    assert expansion(0.01, 0.1) == pytest.approx(2 - 0.15, rel=1e-14)
    assert expansion(-0.01, 0.1) == pytest.approx(-2 - 0.15, rel=1e-14)
    assert expansion(-0.01, 0.1, order=1) == pytest.approx(-2, rel=1e-14)
    assert step_ratio(0.01, 1.0) == pytest.approx(0.99 + 0.01 * math.log(100), rel=1e-14)


@pytest.mark.parametrize("p_hat", P_HATS)
@pytest.mark.parametrize("share", [1e-3, 0.3, 0.99, 1.0, 1.5, 30])
def test_coefficients_by_finite_differences_at_50_digits(p_hat, share):
    with mpmath.workdps(50):
        p = mpmath.mpf(p_hat)
        q, step = share * p, mpmath.mpf(10) ** -20 * p
        central = (loss(q + step, p) - loss(q - step, p)) / (2 * step)
        assert abs(central - coefficient(q, p)) < mpmath.mpf(10) ** -20 / p
        by_log = (-mpmath.log(q + step) + mpmath.log(q - step)) / (2 * step)
        assert abs(by_log - cross_entropy_coefficient(q)) < mpmath.mpf(10) ** -20 / p


def assert_coefficient_keeps_its_digits(q, p_hat):
    with mpmath.workdps(60):
        exact_q, exact_p = mpmath.mpf(q), mpmath.mpf(p_hat)
        exact = -1 / exact_q + (1 + mpmath.log(exact_q / exact_p)) / exact_p
        assert abs(coefficient(q, p_hat) - exact) <= 1e-14 * abs(exact)


@given(PROBABILITY, PROBABILITY)
def test_floats_keep_their_digits(q, p_hat):
    assert_coefficient_keeps_its_digits(q, p_hat)


@given(PROBABILITY, st.floats(-1e-6, 1e-6))
def test_floats_keep_their_digits_near_p_hat(p_hat, relative_epsilon):
    assert_coefficient_keeps_its_digits(p_hat * (1 + relative_epsilon), p_hat)


@given(PROBABILITY, PROBABILITY)
def test_the_push_is_towards_p_hat(q, p_hat):
    assert np.sign(coefficient(q, p_hat)) == np.sign(q - p_hat)
    assert cross_entropy_coefficient(q) < 0


@given(PROBABILITY, PROBABILITY, PROBABILITY)
def test_the_coefficient_rises_strictly(one, other, p_hat):
    assume(one != other)
    with mpmath.workdps(50):
        low, high = (coefficient(mpmath.mpf(q), mpmath.mpf(p_hat)) for q in sorted((one, other)))
        assert low < high


@given(PROBABILITY, PROBABILITY)
def test_the_loss_of_one_occurrence_is_lowest_at_p_hat(q, p_hat):
    assert loss(p_hat, p_hat) == pytest.approx(-math.log(p_hat), rel=1e-15)
    assert loss(q, p_hat) >= loss(p_hat, p_hat) - 1e-14 * abs(math.log(p_hat))


@pytest.mark.parametrize("formula", [loss, coefficient, step_ratio, expansion])
def test_floats_arrays_mpmath_and_sympy_agree(formula):
    q, p_hat = np.array([1e-5, 0.0199, 0.02, 0.9]), np.array([0.02, 0.02, 0.02, 0.5])
    values = formula(q, p_hat)
    assert values.shape == (4,)
    symbolic = sympy.lambdify((Q, P_HAT), formula(Q, P_HAT), "mpmath")
    for value, one_q, one_p in zip(values, q.tolist(), p_hat.tolist(), strict=True):
        assert formula(one_q, one_p) == value
        with mpmath.workdps(50):
            precise = formula(mpmath.mpf(one_q), mpmath.mpf(one_p))
            assert value == pytest.approx(float(precise), rel=1e-13, abs=0)
            assert mpmath.almosteq(symbolic(mpmath.mpf(one_q), mpmath.mpf(one_p)), precise)


@pytest.mark.parametrize("formula", [loss, coefficient, step_ratio])
@pytest.mark.parametrize(
    ("q", "p_hat", "name"), [(0.0, 0.5, "q"), (0.5, -1.0, "p_hat"), (math.nan, 0.5, "q")]
)
def test_probabilities_must_be_positive(formula, q, p_hat, name):
    with pytest.raises(ValueError, match=f"^{name} must be positive"):
        formula(q, p_hat)


def test_other_refusals():
    with pytest.raises(ValueError, match="q must be positive"):
        cross_entropy_coefficient(np.array([0.5, 0.0]))
    with pytest.raises(ValueError, match="p_hat must be positive"):
        expansion(0.1, 0.0)
    with pytest.raises(ValueError, match="order must be at least 1, not 0"):
        expansion(0.1, 0.5, order=0)


# Derivation and expansion


def test_derived_coefficients_are_equation_13():
    cross_entropy, reverse_kl = derive_coefficients()
    assert cross_entropy == -1 / Q
    assert sympy.simplify(reverse_kl - (1 + sympy.log(Q / P_HAT)) / P_HAT) == 0


@pytest.mark.parametrize("side", SIDES)
def test_derived_expansion_is_the_numerical_taylor_series(side):
    with mpmath.workdps(50):
        p = mpmath.mpf("0.3")
        numerical = mpmath.taylor(
            lambda e: -1 / (p + side * e) + (1 + mpmath.log((p + side * e) / p)) / p, 0, 5
        )
    series = derive_expansion(side, 5).subs(P_HAT, sympy.Rational(3, 10))
    for n, value in enumerate(numerical):
        assert float(series.coeff(EPSILON, n)) == pytest.approx(float(value), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("side", SIDES)
def test_printed_formulas_are_the_derived_ones(side):
    assert sympy.expand(printed_expansion(side) - derive_expansion(side)) == 0
    assert sympy.expand(expansion(side * EPSILON, P_HAT, 6) - derive_expansion(side, 6)) == 0
    for step in printed_proof(side):
        difference = step - printed_expansion(side)
        assert sympy.simplify(sympy.series(difference, EPSILON, 0, 3).removeO()) == 0


@pytest.mark.parametrize("p_hat", P_HATS)
@pytest.mark.parametrize("side", SIDES)
def test_the_remainder_has_slope_3_over_8_decades(p_hat, side):
    slopes = remainder_slopes(p_hat, side)
    assert len(slopes) == 8
    np.testing.assert_allclose(slopes, 3, atol=0.01)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", [1, 4, 7])
def test_the_remainder_of_each_order(side, order):
    slopes = remainder_slopes(1e-3, side, lambda e, p: expansion(e, p, order), decades=(-6, -2))
    np.testing.assert_allclose(slopes, order + 1, atol=0.02)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("second", [-1, 1.5, -1.499])
def test_a_wrong_second_coefficient_is_seen(side, second):
    slopes = remainder_slopes(1e-6, side, lambda e, p: 2 * e / p**2 + second * e**2 / p**3)
    assert slopes[:4] == pytest.approx(2, abs=0.01)


def test_a_wrong_first_coefficient_is_seen():
    slopes = remainder_slopes(1e-6, 1, lambda e, p: e / p**2 - 1.5 * e**2 / p**3)
    np.testing.assert_allclose(slopes, 1, atol=0.01)


@pytest.mark.parametrize("side", SIDES)
def test_the_series_converges_within_p_hat_and_not_beyond(side):
    p_hat = 0.3
    inside, outside = 0.9 * side * p_hat, 1.1 * side * p_hat
    assert expansion(inside, p_hat, 400) == pytest.approx(coefficient(p_hat + inside, p_hat))
    last = [abs(expansion(outside, p_hat, n) - expansion(outside, p_hat, n - 1)) for n in (50, 100)]
    assert last[1] > 50 * last[0] > 50


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_expansion_limit(side, order):
    limits = [expansion_limit(error, side, order) for error in (1e-4, 0.1, 0.3)]
    assert limits == sorted(limits)
    for limit, error in zip(limits, (1e-4, 0.1, 0.3), strict=True):
        exact = coefficient(0.02 * (1 + side * limit), 0.02)
        approximate = expansion(0.02 * side * limit, 0.02, order)
        assert abs(approximate / exact - 1) == pytest.approx(error, rel=1e-6)
    # The error leads with the next term: (4/3)x³ of 2x for the two terms of the paper.
    assert expansion_limit(1e-4, side) == pytest.approx(math.sqrt(1.5e-4), rel=0.02)


def test_no_expansion_limit():
    with pytest.raises(ValueError, match="sign"):
        expansion_limit(1.5, 1)


# Gradients of a network


def training_loss(log_q, log_p_hat):
    """The loss that fine-tuning minimises, with log q_0 and the log-odds that make this p̂."""
    return sum(finetuning_loss(log_q, log_p_hat + 0.7, log_q.detach() * 0 + 0.7))


@pytest.mark.parametrize("given_loss", [None, training_loss])
def test_autograd_of_an_lstm(given_loss):
    shares = [side * 10.0**-k for k in (1, 2, 3, 4) for side in SIDES]
    for row in autograd_errors(shares, fine_tuning_loss=given_loss, seed=3):
        assert row["exact"] < 1e-10
        assert row["expanded"] == pytest.approx(2 / 3 * row["relative_epsilon"] ** 2, rel=0.03)
    far = autograd_errors([-0.99, 9.0], fine_tuning_loss=given_loss)
    assert all(row["exact"] < 1e-13 for row in far)


def test_autograd_sees_a_wrong_loss():
    rows = autograd_errors(
        [-0.1, 0.1], fine_tuning_loss=lambda log_q, log_p: -log_q + (log_q - log_p).exp()
    )
    assert all(row["exact"] > 0.1 for row in rows)


# Beyond the paper


def test_step_ratio_by_cases():
    low, high = equal_step_ratios()
    assert (low, high) == pytest.approx((0.36788, 1.45473), rel=1e-5)
    assert high * (1 + math.log(high)) == pytest.approx(2, rel=1e-15)
    p_hat = 0.003
    t = np.geomspace(1e-9, 50, 4001)
    ratio = step_ratio(t * p_hat, p_hat)
    np.testing.assert_allclose(ratio, abs(t * (1 + np.log(t)) - 1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(ratio < 1, (t > low) & (t < high))
    assert ratio[t < low].max() == pytest.approx(1 + math.exp(-2), rel=1e-5)
    assert ratio[0] == pytest.approx(1, abs=1e-7)


@pytest.mark.parametrize("side", SIDES)
def test_step_ratio_near_p_hat_is_twice_the_papers(side):
    epsilon = 1e-9
    assert step_ratio(0.01 + side * epsilon, 0.01) == pytest.approx(2 * epsilon / 0.01, rel=1e-6)


def minimise_over_softmax(p, p_hat, divergence):
    """The expected loss, written out and minimised over all logits; its gradient by hand."""
    weight = p / p_hat if divergence == "sampled" else np.ones_like(p)

    def expected_loss(logits):
        log_q = logits - np.logaddexp.reduce(logits)
        q, log_t = np.exp(log_q), log_q - np.log(p_hat)
        by_q = -p / q + weight * (1 + log_t)
        return np.sum(-p * log_q + weight * q * log_t), q * (by_q - np.sum(q * by_q))

    options = {"gtol": 1e-11, "maxiter": 5000}
    result = minimize(expected_loss, np.log(p), jac=True, method="BFGS", options=options)
    return np.exp(result.x - np.logaddexp.reduce(result.x))


@pytest.mark.parametrize("divergence", ["sampled", "summed"])
@pytest.mark.parametrize("kappa", [0.05, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(
    "p", [np.array([0.5, 0.5]), np.array([0.2, 0.7, 0.1]), np.array([0.01, 0.6, 0.3, 0.09])]
)
def test_minimiser_by_direct_minimisation(p, kappa, divergence):
    p_hat = p.copy()
    p_hat[0] *= kappa
    q = minimise_over_softmax(p, p_hat, divergence)
    assert minimiser(p[0], kappa, divergence=divergence) == pytest.approx(q[0], rel=1e-6)
    np.testing.assert_allclose(q[1:] / p[1:], q[1] / p[1], rtol=1e-6)
    assert min(p[0], p_hat[0]) * (1 - 1e-6) <= q[0] <= max(p[0], p_hat[0]) * (1 + 1e-6)


def test_minimiser_of_a_rare_word():
    """Without the simplex: p̂ itself, and κ = u e^(1 − 1/u), or u = 1/W(e/κ), with u = q/p."""
    for kappa in (1e-3, 0.1, 2.0):
        assert minimiser(1e-8, kappa) == pytest.approx(kappa * 1e-8, rel=1e-6)
        u = 1 / float(mpmath.lambertw(mpmath.e / kappa).real)
        assert minimiser(1e-8, kappa, divergence="summed") == pytest.approx(u * 1e-8, rel=1e-6)


@pytest.mark.parametrize(
    ("p", "kappa", "name"), [(0.0, 0.5, "p"), (1.0, 0.5, "rest"), (0.5, 0.0, "kappa")]
)
def test_minimiser_refuses(p, kappa, name):
    with pytest.raises(ValueError, match=f"^{name} must be positive"):
        minimiser(p, kappa)


# Verdicts


def test_report_of_a_correct_paper():
    text, holds = proposition1.report()
    assert holds
    assert "FAILS" not in text
    assert text.endswith("11 of 11 statements hold.")


@pytest.mark.parametrize("side", SIDES)
def test_a_misprint_would_be_reported(monkeypatch, side):
    second = EPSILON**2 / P_HAT**3
    monkeypatch.setattr(
        proposition1,
        "printed_expansion",
        lambda s: derive_expansion(s) + (second / 2 if s == side else 0),
    )
    failed = [v.claim for v in proposition1._check_derivation() if not v.holds]
    assert [claim[:8] for claim in failed] == [f"Eq. ({14 if side < 0 else 15})", "Appendix"]
