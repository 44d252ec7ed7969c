"""Measures of section 4 with intervals over stretches of a text, from numbers at its tokens."""

from collections.abc import Callable, Mapping

import numpy as np

from paperlib.estimates import Estimate, interval, means_of_stretches
from paperlib.text_study import BEST

STRETCHED = "bootstrap over stretches of the text"
T_STRETCHED = "t interval over stretches of the text"


def perplexities_of_stretches(log_q: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Perplexities by name, and ``(R,)`` of them each from stretches drawn with replacement.

    ``log_q`` has ``(N,)`` log-probabilities of the same tokens under each name.
    """
    values, draws = (np.exp(-means) for means in means_of_stretches(list(log_q.values())))
    return dict(zip(log_q, values, strict=True)), dict(zip(log_q, draws.T, strict=True))


def stretched(measure: Callable[[dict], float], values: dict, resampled: dict | None) -> Estimate:
    """``measure`` of the ``values`` by name; its interval from ``(R,)`` of them each, if any."""
    if resampled is None:
        return Estimate.single(measure(values))
    return Estimate(float(measure(values)), *interval(measure(resampled)), STRETCHED)


def steps_of_split(prefix: str, what: str, values: dict, resampled: dict) -> dict[str, Estimate]:
    """Every model, less the initial one, and less the option that the paper takes."""

    def of(measure: Callable[[dict], float]) -> Estimate:
        return stretched(measure, values, resampled)

    found = {f"{prefix}.{name}.{what}": of(lambda row, n=name: row[n]) for name in values}
    options = [name for name in values if name != "initial"]
    found |= {
        f"{prefix}.{name}-initial.{what}": of(lambda row, n=name: row[n] - row["initial"])
        for name in options
    }
    found |= {
        f"{prefix}.{name}-{BEST}.{what}": of(lambda row, n=name: row[n] - row[BEST])
        for name in options
        if name != BEST
    }
    return found
