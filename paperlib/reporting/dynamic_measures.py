"""Measures of dynamic evaluation (section 4.2), by stretches of the text, for the ledger."""

import math
from dataclasses import replace

import numpy as np

from paperlib.corpus_study import CorpusStudy
from paperlib.estimates import NO_GAIN, Estimate, interval
from paperlib.reporting.stretches import perplexities_of_stretches, stretched

TUNED = "finetuned_dynamic"


def of_dynamic(study: CorpusStudy) -> dict[str, Estimate]:
    """Perplexities under dynamic evaluation and what it changes, and ``dynamic_share``.

    ``finetuned_dynamic-finetuned`` is dynamic less static evaluation, and
    ``finetuned_dynamic-initial_dynamic`` the fine-tuned less the initial model, by stretches of the
    text. The share is what dynamic evaluation leaves of fine-tuning's gain in log perplexity on the
    test text, where there is any; where that gain may be none, the share may be anything. Nothing
    where the profile does not run it.
    """
    if study.settings.dynamic is None:
        return {}
    found = {}
    for split in ("valid", "test"):
        values, resampled = _static_and_dynamic(study, split)
        measured = {
            f"{TUNED}.{split}_ppl": lambda row: row[TUNED],
            f"{TUNED}-finetuned.{split}_ppl": lambda row: row[TUNED] - row["finetuned"],
            f"{TUNED}-initial_dynamic.{split}_ppl": lambda row: row[TUNED] - row["initial_dynamic"],
        }
        found |= {what: stretched(of, values, resampled) for what, of in measured.items()}
    found["dynamic_share"] = _dynamic_share(values, resampled)
    return {f"{study.name}.{name}": one for name, one in found.items()}


def _static_and_dynamic(study: CorpusStudy, split: str) -> tuple[dict, dict | None]:
    """Perplexities of ``initial``, ``initial_dynamic``, ``finetuned`` and ``finetuned_dynamic``,
    and ``(R,)`` of them each; None for these where an earlier version kept no values at tokens."""
    values, log_q = {}, {}
    for name, model in (("initial", study.initial), ("finetuned", study.finetuned())):
        values[name] = study.perplexities(model)[split]
        values[f"{name}_dynamic"] = study.dynamic(model)[split]
        log_q[name] = study.token_log_probs(model)
        log_q[f"{name}_dynamic"] = study.dynamic_log_probs(model)
    if None in log_q.values():
        return values, None
    return perplexities_of_stretches({name: found[split] for name, found in log_q.items()})


def _dynamic_share(values: dict, resampled: dict | None) -> Estimate:
    def gain(row: dict, suffix: str = "") -> float:
        return np.log(row[f"initial{suffix}"] / row[f"finetuned{suffix}"])

    if gain(values) <= 0:
        return Estimate.single(math.nan, NO_GAIN)
    share = stretched(lambda row: gain(row, "_dynamic") / gain(row), values, resampled)
    if resampled is not None and interval(gain(resampled))[0] <= 0:
        return replace(share, low=-math.inf, high=math.inf)
    return share
