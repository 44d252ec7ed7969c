"""Fine-tunings of notebook 09 against one another, paired by test sentence.

Intervals are 95 % by bootstrap over the test sentences: what other sentences would change, with the
same trained models, not what another seed would.
"""

import numpy as np
import pandas as pd

from paperlib.beyond import BeyondStudy, Variant
from paperlib.estimates import Estimate, direction, interval, resampled_sums

Model = str | Variant
"""A model before fine-tuning, such as ``perturbed``, or a fine-tuned one."""


class Comparisons:
    """Perplexities on the test sentences of a study, and their differences."""

    def __init__(self, study: BeyondStudy):
        self.study = study

    def perplexity(self, model: Model) -> float:
        """Test perplexity."""
        return float(self._perplexity(self._of_sentences(model).sum()))

    def difference(self, one: Model, other: Model) -> dict[str, float | str]:
        """Test perplexity of ``one`` less that of ``other``, and what its interval says.

        ``difference``, ``low``, ``high`` and ``verdict``, which is that of
        :func:`~paperlib.estimates.direction`.
        """
        sums = np.stack([self._of_sentences(model) for model in (one, other)], axis=-1)
        totals, draws = (
            self._perplexity(values) for values in (sums.sum(axis=0), self._drawn(sums))
        )
        low, high = interval(draws[:, 0] - draws[:, 1])
        found = {"difference": totals[0] - totals[1], "low": low, "high": high}
        return found | {"verdict": direction(low, high)}

    def recovered(self, *variants: Variant) -> dict[str, float]:
        """The share of the perturbation's cost in log perplexity that a variant wins back.

        Of two variants, the share of the first less that of the second. ``recovered``, ``low`` and
        ``high``.
        """
        models = [model for variant in variants for model in ("initial", variant.of, variant)]
        sums = np.stack([self._of_sentences(model) for model in models], axis=-1)
        found = []
        for totals in (sums.sum(axis=0), self._drawn(sums)):
            threes = totals.reshape(*totals.shape[:-1], len(variants), 3)
            initial, start, tuned = np.moveaxis(threes, -1, 0)
            shares = (tuned - start) / (initial - start)
            found.append(shares[..., 0] - (shares[..., 1] if len(variants) > 1 else 0))
        value, drawn = found
        low, high = interval(drawn)
        return {"recovered": float(value), "low": low, "high": high}

    def table(self) -> pd.DataFrame:
        """:meth:`difference` of each of the study's pairs, a row each.

        ``question``, ``one``, ``other``, ``of``, ``rate``, ``difference``, ``low``, ``high`` and
        ``verdict``.
        """
        return pd.DataFrame(
            {"question": question, "one": one.title, "other": other.title, "of": one.of}
            | {"rate": self.study.rate(one)}
            | self.difference(one, other)
            for question, pairs in self.study.pairs().items()
            for one, other in pairs
        )

    def measures(self) -> dict[str, Estimate]:
        """What the best discriminator there can be would still gain, at the profile's rate, for the
        ledger of claims."""
        oracle, ours = self.study.pairs()[1][0]
        found = self.difference(oracle, ours)
        name = f"{oracle.of}.{oracle.title}-{ours.title}.test_ppl"
        ends = (found[key] for key in ("difference", "low", "high"))
        return {name: Estimate(*map(float, ends), "bootstrap over test sentences")}

    def _of_sentences(self, model: Model) -> np.ndarray:
        """Log-probability of each test sentence, ``(N,)``, nats."""
        return self.study.test_log_q(model).sum(axis=1)

    def _drawn(self, sums: np.ndarray) -> np.ndarray:
        return resampled_sums(sums, self.study.beyond.resamples, self.study.seed)

    def _perplexity(self, sums: np.ndarray) -> np.ndarray:
        return np.exp(-sums / self.study.test.size)
