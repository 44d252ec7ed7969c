"""Proposition 1 (section 3, appendix B): how the fine-tuning loss pushes one probability.

For one occurrence of the true next word w* in a context c, write q = q_θ(w*|c), p̂ = p̂(w*|c),
which is frozen, and v = ∇_θ q. The gradient of eq. (12) is a number times v, and that number
depends on q and p̂ alone; here are its exact form, its expansion around q = p̂, their derivation,
and the checks of both. Losses are in nats, coefficients of v in nats per unit of probability.

The formulas take floats, NumPy arrays, mpmath numbers and SymPy expressions, and compute in what
they are given.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import mpmath
import numpy as np
import sympy
from scipy.optimize import brentq

Number = float | np.ndarray | mpmath.mpf | sympy.Expr
"""What the formulas take and return."""

Side = Literal[-1, 1]
"""−1 for q = p̂ − ε (eq. 14), +1 for q = p̂ + ε (eq. 15)."""

Q, P_HAT, EPSILON = sympy.symbols(r"q \hat{p} \varepsilon", positive=True)

DIGITS = 50


def loss(q: Number, p_hat: Number) -> Number:
    """Eq. (12), −log q + (q/p̂) log(q/p̂), in nats; its one minimum is at q = p̂.

    Raises :class:`ValueError` unless q and p̂ are positive.
    """
    _require_positive(q=q, p_hat=p_hat)
    return -_log_ratio(q, 1) + q / p_hat * _log_ratio(q, p_hat)


def cross_entropy_coefficient(q: Number) -> Number:
    """Eq. (13), left: ∇(−log q) = −(1/q) · v.

    Raises :class:`ValueError` unless q is positive.
    """
    _require_positive(q=q)
    return -1 / q


def coefficient(q: Number, p_hat: Number) -> Number:
    """Eq. (13), both parts: the exact c in ∇(−log q + (q/p̂) log(q/p̂)) = c · v.

    c = −1/q + (1 + log(q/p̂))/p̂, written so that floats keep their digits where q is near p̂.

    Raises :class:`ValueError` unless q and p̂ are positive.
    """
    _require_positive(q=q, p_hat=p_hat)
    return ((q - p_hat) / q + _log_ratio(q, p_hat)) / p_hat


def expansion(epsilon: Number, p_hat: Number, order: int = 2) -> Number:
    """Eq. (14) and (15): :func:`coefficient` around p̂, with signed ``epsilon`` = q − p̂.

    Σ_n (−1)^(n+1) · (n+1)/n · epsilon^n / p̂^(n+1) for n = 1 … ``order``; the paper stops at 2.
    The series converges for |epsilon| < p̂ and nowhere else.

    Raises :class:`ValueError` unless p̂ is positive and ``order`` at least 1.
    """
    _require_positive(p_hat=p_hat)
    if order < 1:
        raise ValueError(f"order must be at least 1, not {order}")
    relative = epsilon / p_hat
    return sum((-1) ** (n + 1) * (n + 1) * relative**n / n for n in range(1, order + 1)) / p_hat


def step_ratio(q: Number, p_hat: Number) -> Number:
    """Size of the step against that of cross-entropy at the same learning rate, without clipping.

    |coefficient| / (1/q) = |t(1 + log t) − 1| with t = q/p̂: a function of t alone. Near t = 1 it is
    2|t − 1|, for t → 0 it tends to 1.

    Raises :class:`ValueError` unless q and p̂ are positive.
    """
    return abs(coefficient(q, p_hat) / cross_entropy_coefficient(q))


def derive_coefficients() -> tuple[sympy.Expr, sympy.Expr]:
    """Eq. (13) from the definition: what multiplies v = ∂q/∂θ in the gradient of both parts.

    Returns the coefficients for −log q and for (q/p̂) log(q/p̂), in ``Q`` and ``P_HAT``.
    """
    theta = sympy.Symbol("theta", real=True)
    q = sympy.Function("q", positive=True)(theta)
    v = q.diff(theta)
    parts = (-sympy.log(q), q / P_HAT * sympy.log(q / P_HAT))
    cross_entropy, reverse_kl = (sympy.simplify(part.diff(theta) / v) for part in parts)
    return cross_entropy.subs(q, Q), reverse_kl.subs(q, Q)


def derive_expansion(side: Side, order: int = 2) -> sympy.Expr:
    """Eq. (14) or (15) from the definition: eq. (13) at q = p̂ ± ε, as a series in ε."""
    exact = sum(derive_coefficients()).subs(Q, P_HAT + side * EPSILON)
    return sympy.series(exact, EPSILON, 0, order + 1).removeO()


def printed_expansion(side: Side) -> sympy.Expr:
    """Eq. (14) or (15) as the paper prints it, without o(ε²)."""
    second = sympy.Rational(3, 2) * EPSILON**2 / P_HAT**3
    return side * 2 * EPSILON / P_HAT**2 - second


def printed_proof(side: Side) -> list[sympy.Expr]:
    """The steps of appendix B as the paper prints them, at q = p̂ ± ε, without the o(·).

    The first two are exact, from the third on terms beyond ε² are left out.
    """
    e, p = side * EPSILON, P_HAT
    return [
        -1 / (p + e) + (1 + sympy.log((p + e) / p)) / p,
        -(1 / (p + e) - 1 / p) + sympy.log(1 + e / p) / p,
        e / p**2 / (1 + e / p) + (e / p - e**2 / (2 * p**2)) / p,
        e / p**2 * (1 - e / p) + e / p**2 - e**2 / (2 * p**3),
        printed_expansion(side),
    ]


def proof_holds(side: Side) -> list[bool]:
    """Whether each step of :func:`printed_proof` is the exact coefficient, as far as it claims."""
    exact = sum(derive_coefficients()).subs(Q, P_HAT + side * EPSILON)
    steps = printed_proof(side)
    truncated = [sympy.series(exact - step, EPSILON, 0, 3).removeO() for step in steps[2:]]
    return [_equal(exact, step) for step in steps[:2]] + [_equal(gap, 0) for gap in truncated]


def remainders(
    p_hat: float,
    side: Side,
    relative_epsilons: Iterable[float],
    approximation: Callable[[Number, Number], Number] = expansion,
) -> np.ndarray:
    """|exact − approximation| at q = p̂ ± ε for each ε/p̂, computed at 50 digits."""
    with mpmath.workdps(DIGITS):
        p = mpmath.mpf(p_hat)
        epsilons = [side * mpmath.mpf(ratio) * p for ratio in relative_epsilons]
        return np.array([float(abs(coefficient(p + e, p) - approximation(e, p))) for e in epsilons])


def remainder_slopes(
    p_hat: float,
    side: Side,
    approximation: Callable[[Number, Number], Number] = expansion,
    *,
    decades: tuple[int, int] = (-10, -2),
) -> np.ndarray:
    """Slopes of :func:`remainders` in log–log, from one ε/p̂ = 10^k to the next.

    An approximation with an o(ε²) that is in truth O(ε³) has slope 3 all along.
    """
    ratios = [10.0**k for k in range(decades[0], decades[1] + 1)]
    return np.diff(np.log10(remainders(p_hat, side, ratios, approximation)))


def autograd_errors(
    relative_epsilons: Iterable[float], *, fine_tuning_loss: Callable | None = None, seed: int = 0
) -> list[dict[str, float]]:
    """Compare eq. (13)–(15) with autograd: all parameters of a small LSTM, v included, in float64.

    ``fine_tuning_loss(log_q, log_p_hat)`` takes 0-d tensors and returns eq. (12) in nats; by
    default it is written out here. Returns a row for each signed ε/p̂ (``relative_epsilon``), at
    q = p̂ + ε, with the distances of :func:`coefficient` · v (``exact``) and of the two terms of
    (14) or (15) times v (``expanded``) from the gradient, as shares of its norm.
    """
    import torch

    def eq12(log_q, log_p_hat):
        log_t = log_q - log_p_hat
        return -log_q + log_t.exp() * log_t

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words, size = 30, 12
        embedding = torch.nn.Embedding(words, size).double()
        lstm = torch.nn.LSTM(size, size, num_layers=2).double()
        output = torch.nn.Linear(size, words).double()
        context, target = torch.randint(words, (7,)), int(torch.randint(words, ()))
    parameters = [weight for part in (embedding, lstm, output) for weight in part.parameters()]
    log_q = output(lstm(embedding(context))[0][-1]).log_softmax(-1)[target]

    def gradient(value):
        parts = torch.autograd.grad(value, parameters, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    q, v, rows = log_q.exp().item(), gradient(log_q.exp()), []
    for ratio in relative_epsilons:
        p_hat = q / (1 + ratio)
        log_p_hat = torch.tensor(math.log(p_hat), dtype=torch.float64)
        result = gradient((fine_tuning_loss or eq12)(log_q, log_p_hat))
        guesses = {"exact": coefficient(q, p_hat), "expanded": expansion(q - p_hat, p_hat)}
        distances = {name: (result - c * v).norm() / result.norm() for name, c in guesses.items()}
        rows.append({"relative_epsilon": ratio} | {k: d.item() for k, d in distances.items()})
    return rows


def expansion_limit(error: float, side: Side, order: int = 2) -> float:
    """The ε/p̂ at which the expansion is off by the share ``error`` of the exact coefficient.

    Raises :class:`ValueError` where it is nowhere off by so much for ε/p̂ up to 1.
    """

    def excess(ratio: float) -> float:
        epsilon = side * ratio
        return abs(expansion(epsilon, 1.0, order) / coefficient(1 + epsilon, 1.0) - 1) - error

    return brentq(excess, 1e-9, 1 - 1e-12)


def equal_step_ratios() -> tuple[float, float]:
    """The two t = q/p̂ at which the step is as large as that of cross-entropy: 1/e and 2/W(2e).

    Between them it is smaller, outside larger (W is Lambert's function).
    """
    return 1 / math.e, float(2 / mpmath.lambertw(2 * mpmath.e).real)


def minimiser(
    p: float, kappa: float, *, divergence: Literal["sampled", "summed"] = "sampled"
) -> float:
    """Where q(w) ends for one word w whose estimate is wrong, p̂(w) = κ · p(w).

    Minimises the expected loss over q on the simplex, for a true probability p(w) = ``p`` and all
    other estimates right. The others then keep their proportions, so two classes are exact for
    any vocabulary. ``"sampled"`` is eq. (12), E_{w~p}[−log q + t log t] with t = q/p̂;
    ``"summed"`` is CE(p‖q) + KL(q‖p̂) with the sum over the vocabulary taken under q itself.

    Raises :class:`ValueError` unless 0 < p < 1 and κ > 0.
    """
    _require_positive(p=p, kappa=kappa, rest=1 - p)
    weight = 1 / kappa if divergence == "sampled" else 1.0

    def slope(log_odds: float) -> float:
        q, rest = 1 / (1 + math.exp(-log_odds)), 1 / (1 + math.exp(log_odds))
        word = -p / q + weight * (1 + math.log(q / (kappa * p)))
        return word - (1 - p) * coefficient(rest, 1 - p)

    # Strictly increasing in q, since the loss is strictly convex; the root is bracketed.
    return 1 / (1 + math.exp(-brentq(slope, -100.0, 30.0, xtol=1e-13)))


@dataclass(frozen=True)
class Verdict:
    """One statement, whether it holds, and by what evidence."""

    claim: str
    holds: bool
    evidence: str


def check() -> list[Verdict]:
    """Verify the proposition, its proof and what follows from it; takes a few seconds."""
    return [*_check_derivation(), *_check_numbers(), *_check_every_q(), *_check_wrong_estimate()]


def report() -> tuple[str, bool]:
    """The verdicts as text, one a line with its evidence below, and whether all hold."""
    verdicts = check()
    lines = [f"{'holds' if v.holds else 'FAILS'}  {v.claim}\n       {v.evidence}" for v in verdicts]
    count = sum(v.holds for v in verdicts)
    return "\n".join([*lines, f"{count} of {len(verdicts)} statements hold."]), count == len(lines)


def _check_derivation() -> Iterator[Verdict]:
    derived = derive_coefficients()
    printed = (-1 / Q, (1 + sympy.log(Q / P_HAT)) / P_HAT)
    yield Verdict(
        "Eq. (13): both gradients",
        all(map(_equal, derived, printed)) and _equal(sum(derived), coefficient(Q, P_HAT)),
        "derived from the loss, symbolically",
    )
    for number, side, sign in ((14, -1, "−"), (15, 1, "+")):
        series, paper = derive_expansion(side, 3), printed_expansion(side)
        yield Verdict(
            f"Eq. ({number}): at q = p̂ {sign} ε, c = {sign}2ε/p̂² − (3/2)ε²/p̂³ + o(ε²)",
            all(_equal(series.coeff(EPSILON, n), paper.coeff(EPSILON, n)) for n in range(3)),
            f"derived as a series; the next term is {series.coeff(EPSILON, 3) * P_HAT**4} ε³/p̂⁴",
        )
    yield Verdict(
        "Appendix B: every step of both proofs",
        all(proof_holds(-1) + proof_holds(1)),
        "two equal the gradient, three agree with it through ε²",
    )
    n = sympy.Symbol("n", integer=True, positive=True)
    term = (-1) ** (n + 1) * (n + 1) / n
    # f(x) = p̂·c at q = p̂(1 + x) obeys (1 + x)² f′ = 2 + x, which binds three terms in a row.
    equation = Q**2 * coefficient(Q, sympy.Integer(1)).diff(Q)
    recurrence = (n + 1) * term.subs(n, n + 1) + 2 * n * term + (n - 1) * term.subs(n, n - 1)
    first_two = _equal(derive_expansion(1), expansion(EPSILON, P_HAT))
    radius = sympy.limit(sympy.simplify(abs(term / term.subs(n, n + 1))), n, sympy.oo)
    yield Verdict(
        "All orders: c = Σ (−1)ⁿ⁺¹ (n+1)/n (q − p̂)ⁿ/p̂ⁿ⁺¹, for |q − p̂| < p̂ only",
        _equal(equation, Q + 1) and _equal(recurrence, 0) and first_two and radius == 1,
        "a recurrence binds the terms for every n; the ratio of two in a row tends to −ε/p̂",
    )


def _check_numbers() -> Iterator[Verdict]:
    slopes = [remainder_slopes(p, side) for p in (0.5, 1e-2, 1e-4, 1e-6) for side in (-1, 1)]
    low, high = np.min(slopes), np.max(slopes)
    yield Verdict(
        "The remainder of (14) and (15) is O(ε³)",
        bool(2.98 < low <= high < 3.02),
        f"{DIGITS} digits, p̂ from 0.5 to 1e-6, ε/p̂ from 1e-10 to 1e-2: "
        f"slopes {low:.3f} to {high:.3f}",
    )
    errors = autograd_errors([sign * 10.0**-k for k in (1, 2, 3, 4) for sign in (-1, 1)])
    exact = max(row["exact"] for row in errors)
    # (4/3)ε³/p̂⁴ is missing from 2ε/p̂²; at ε/p̂ = 0.1 the terms after it still count for 2 %.
    shares = [row["expanded"] / (2 / 3 * row["relative_epsilon"] ** 2) for row in errors]
    yield Verdict(
        "By autograd, an LSTM's gradient in all its parameters is c·v",
        exact < 1e-10 and 0.95 < min(shares) <= max(shares) < 1.05,
        f"float64: off by {exact:.0e} of its norm at most; the two terms are off by (2/3)(ε/p̂)²",
    )


def _check_every_q() -> Iterator[Verdict]:
    slope = sympy.expand(coefficient(Q, P_HAT).diff(Q))
    yield Verdict(
        "Towards p̂ from every q, not only near it: c < 0 below, c > 0 above",
        bool(slope.is_positive) and coefficient(P_HAT, P_HAT) == 0,
        "dc/dq = 1/q² + 1/(p̂q) > 0, and c = 0 at p̂",
    )
    # |h| is the ratio of steps, as a function of t = q/p̂ (here Q, with p̂ = 1).
    h = sympy.expand(Q * coefficient(Q, sympy.Integer(1)))
    yield Verdict(
        "Near p̂, steps are 2ε/p̂ of cross-entropy's (the paper says ε/p̂)",
        h.subs(Q, 1) == 0 and h.diff(Q).subs(Q, 1) == 2,
        "first term of the ratio |t(1 + log t) − 1|, t = q/p̂",
    )
    low, high = equal_step_ratios()
    starts = sympy.limit(h, Q, 0) == -1 and _equal(h.diff(Q), sympy.log(Q) + 2)
    yield Verdict(
        f"They are smaller than cross-entropy's for {low:.3f} < q/p̂ < {high:.3f} and only there",
        starts and math.isclose(step_ratio(low, 1.0), 1) and math.isclose(step_ratio(high, 1.0), 1),
        f"at most {step_ratio(math.exp(-2), 1.0):.3f} times as large below, at q = p̂/e²; "
        f"{step_ratio(0.01, 1.0):.3f} times at q = p̂/100; unbounded above",
    )


def _check_wrong_estimate() -> Iterator[Verdict]:
    p = kappa = 1e-3
    sampled, summed = minimiser(p, kappa) / p, minimiser(p, kappa, divergence="summed") / p
    common = minimiser(0.5, 0.5) / 0.5
    yield Verdict(
        "If p̂ = κp for one word, q ends between p and p̂, and at p̂ where κ is small",
        math.isclose(sampled, kappa, rel_tol=1e-3) and kappa < summed < 1 and 0.5 < common < 1,
        f"p = 0.001, κ = 0.001: q/p = {sampled:.4f} (with KL(q‖p̂) summed under q: {summed:.2f}); "
        f"p = 0.5, κ = 0.5: q/p = {common:.2f}",
    )


def _equal(one: sympy.Expr, other: sympy.Expr) -> bool:
    return sympy.simplify(sympy.expand_log(one - other, force=True)) == 0


def _log_ratio(q: Number, p_hat: Number) -> Number:
    """log(q/p̂); for floats to nearly all digits also where q is near p̂."""
    ratio = q / p_hat
    if isinstance(ratio, sympy.Expr):
        return sympy.log(ratio)
    if isinstance(ratio, mpmath.mpf):
        return mpmath.log(ratio)
    change = (q - p_hat) / p_hat
    near = np.abs(change) < 0.5
    return np.where(near, np.log1p(np.where(near, change, 0)), np.log(ratio))[()]


def _require_positive(**values: Number) -> None:
    for name, value in values.items():
        if not isinstance(value, sympy.Expr) and not np.all(np.asarray(value > 0)):
            raise ValueError(f"{name} must be positive, not {value}")
