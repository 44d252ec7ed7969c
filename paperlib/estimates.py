"""Numbers with the interval that goes with them: over seeds where there are several, else by
bootstrap over the sentences or stretches of the text that they were measured on.

The two say different things. An interval over seeds answers "what if everything were run again?";
one over sentences only "what if the sentences were others?", with the same trained models.
``basis`` names which it is.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy.special import stdtrit  # of scipy.stats, which takes ten times as long to import

BLOCK = 250
"""Resamples that are drawn at once, to save memory."""

KEPT = 1 << 25
"""Numbers up to which the weights of a bootstrap are kept, in one or two bytes each."""

RESAMPLES = 1000
LEVEL = 0.95

STRETCHES = 100
"""Stretches that a text is cut into for its intervals: words next to each other go together."""

EXACT = "exact"
ONE_RUN = "one run, no interval"
LIMITED = "its training ended at the limit of epochs, not at a plateau"
NO_GAIN = "there was no gain to take a share of"

LOWER, HIGHER, UNCHANGED, CANNOT_TELL = "lower", "higher", "unchanged", "cannot tell"

Row = TypeVar("Row")


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; ``basis`` says what the interval is over.

    ``low`` and ``high`` are not numbers where there is no interval, and the value itself where it
    is exact. ``seeds`` counts the runs behind it, each with a seed of its own, and ``sd`` is their
    sample standard deviation, where there are several.
    """

    value: float
    low: float
    high: float
    basis: str
    seeds: int = 1
    sd: float = math.nan

    @classmethod
    def single(cls, value: float, basis: str = ONE_RUN) -> "Estimate":
        """A number of one run, without an interval."""
        return cls(float(value), math.nan, math.nan, basis)

    @classmethod
    def at_least(cls, value: float, basis: str) -> "Estimate":
        """A number that is known from below alone; ``high`` is infinite."""
        return cls(float(value), float(value), math.inf, basis)

    @classmethod
    def exact(cls, value: float) -> "Estimate":
        """A number that no other run would change."""
        return cls(float(value), float(value), float(value), EXACT)


def _students_t(freedom: int) -> float:
    """How many standard errors a two-sided interval reaches."""
    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def over_seeds(
    values: Sequence[float], title: str = "seeds", *, quotients: bool = False
) -> Estimate:
    """Mean and t interval of one value a seed; of a single value, that value alone.

    Of ``quotients``, all above 0, the geometric mean and the t interval of their logarithms: half
    and twice are equally far from 1.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1:
        return Estimate.single(values[0])
    basis = f"t interval over {len(values)} {title}"
    scaled = np.log(values) if quotients else values
    error = scaled.std(ddof=1) / len(scaled) ** 0.5
    margin = error * _students_t(len(scaled) - 1)
    ends = scaled.mean() + np.array([0, -margin, margin])
    value, low, high = (np.exp(ends) if quotients else ends).tolist()
    basis += " of the logarithm" if quotients else ""
    return Estimate(value, low, high, basis, len(values), float(values.std(ddof=1)))


def of_one_more(values: Sequence[float], title: str) -> Estimate:
    """Mean, and the t interval in which *one more* value would lie, of several.

    That is what a single published value has to be compared with: it is a draw, not a mean.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 1:
        return Estimate.single(values[0])
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    margin = sd * (1 + 1 / len(values)) ** 0.5 * _students_t(len(values) - 1)
    basis = f"interval for one more of {len(values)} {title}"
    return Estimate(mean, float(mean - margin), float(mean + margin), basis, len(values), sd)


def from_error(value: float, error: float, units: int, title: str) -> Estimate:
    """A value and its t interval from a standard error over so many units."""
    margin = error * _students_t(units - 1)
    return Estimate(float(value), float(value - margin), float(value + margin), title)


def estimate(
    measure: Callable[[Row], float], seeds: Sequence[Row], resampled: Row, title: str
) -> Estimate:
    """``measure`` of each seed's row, paired by seed; of a single seed, by bootstrap.

    ``resampled`` is a row whose values are arrays over resamples, of the first seed; ``title`` says
    what was resampled.
    """
    values = [measure(row) for row in seeds]
    if len(values) > 1:
        return over_seeds(values)
    low, high = interval(measure(resampled))
    return Estimate(float(values[0]), low, high, f"bootstrap over {title}")


def direction(low: float, high: float) -> str:
    """What the interval of a difference says: ``LOWER``, ``HIGHER``, ``UNCHANGED`` or
    ``CANNOT_TELL``.

    Unchanged is what is exactly 0: an interval around 0 may have room for a large difference.
    """
    if low == high == 0:
        return UNCHANGED
    return LOWER if high < 0 else HIGHER if low > 0 else CANNOT_TELL


def interval(resampled: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of resampled values; those that are not numbers are left out."""
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(resampled, (tail, 1 - tail))
    return float(low), float(high)


def bootstrap_weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields ``(R, n)`` counts of how often each of ``n`` units is in a sample with replacement.

    There are ``resamples`` rows in all, in blocks. Raises ``ValueError`` for fewer than two units.
    """
    if n < 2:
        raise ValueError(f"a bootstrap needs at least two sentences, not {n}")
    yield from (_kept_weights if n * resamples <= KEPT else _drawn_weights)(n, resamples, seed)


@functools.lru_cache(maxsize=4)
def _kept_weights(n: int, resamples: int, seed: int) -> list[np.ndarray]:
    """Drawing takes longer than all that is done with them, and they are asked for many times."""
    smallest = np.min_scalar_type(n)
    return [block.astype(smallest) for block in _drawn_weights(n, resamples, seed)]


def _drawn_weights(n: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, BLOCK):
        rows = min(BLOCK, resamples - start)
        yield rng.multinomial(n, np.full(n, 1 / n), size=rows)


def resampled_sums(sums: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """``(R, K)`` totals of resampled rows of ``(N, K)`` sums, a row for each unit.

    Sums of the same number of units are resampled alike, so differences are paired.
    """
    weights = bootstrap_weights(len(sums), resamples, seed)
    return np.concatenate([w.astype(np.float64) @ sums for w in weights])


def sums_of_stretches(values: Sequence[np.ndarray]) -> np.ndarray:
    """``(S, K + 1)`` sums over stretches of a text of K numbers a token, each ``(N,)``; the last
    column has the tokens."""
    size = len(values[0])
    edges = np.linspace(0, size, min(STRETCHES, size) + 1).astype(int)
    columns = [np.add.reduceat(value.astype(np.float64), edges[:-1]) for value in values]
    return np.stack([*columns, np.diff(edges).astype(np.float64)], axis=-1)


def means_of_stretches(values: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means ``(K,)`` of K numbers a token, each ``(N,)``, and ``(R, K)`` from stretches drawn with
    replacement."""
    sums = sums_of_stretches(values)
    means, draws = (
        totals[..., :-1] / totals[..., -1:] for totals in (sums.sum(axis=0), resampled_sums(sums))
    )
    return means, draws


def error_of_mean(values: np.ndarray) -> float:
    """Standard error of the mean of ``(N,)`` numbers of a text's tokens, over its stretches."""
    sums, tokens = sums_of_stretches([values]).T
    residuals = sums - tokens * values.mean(dtype=np.float64)
    n = len(sums)
    return float(np.sqrt((residuals**2).sum() * n / max(n - 1, 1)) / tokens.sum())


def interval_of_mean(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    """Mean over sentences of ``(N,)`` values, and its 95 % bootstrap interval."""
    means = resampled_sums(values[:, None], resamples, seed)[:, 0] / len(values)
    return (float(values.mean()), *interval(means))
