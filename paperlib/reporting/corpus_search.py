"""What section 4.1 says of learning rates and regularisation, where a profile tries others."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import pandas as pd

from paperlib.corpus_study import OWN, UNREGULARISED, CorpusStudy
from paperlib.estimates import NO_GAIN, Estimate, interval, means_of_stretches
from paperlib.reporting.corpus_tables import NOT_RUN
from paperlib.reporting.stretches import perplexities_of_stretches, stretched
from paperlib.training import Progress

START = "start"
"""What gains are counted from: log 4, or the initial model's perplexity."""

CRITERIA = {
    "discriminator": "valid. D",
    "finetuning": "valid. perplexity",
    "cross_entropy": "valid. perplexity",
    "cross_entropy_dropout": "valid. perplexity",
}

COLUMNS = (
    "network",
    "training",
    "tried",
    "learning rate",
    "measure",
    "best",
    "best epoch",
    "epochs",
    "perplexity, epoch by epoch",
)


def table(studies: Iterable[CorpusStudy]) -> pd.DataFrame:
    """One row a training of :meth:`CorpusStudy.search`; none where nothing was tried."""
    rows = [
        _row(study.name, kind, name, trained.progress)
        for study in studies
        for kind, tried in study.search().items()
        for name, trained in tried.items()
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(network: str, kind: str, name: str, run: Progress) -> tuple:
    rate = run.history[0]["learning_rate"]
    curve = " → ".join(f"{e['perplexity']:.2f}" for e in run.history if "perplexity" in e)
    return network, kind, name, rate, CRITERIA[kind], run.best, run.best_epoch, run.epoch, curve


def for_people(found: pd.DataFrame) -> pd.DataFrame:
    """The same to five digits; one row that says so where nothing was tried."""
    if found.empty:
        return pd.DataFrame([dict.fromkeys(COLUMNS, NOT_RUN)])
    return found.assign(best=found["best"].map("{:.5f}".format))


def of_search(study: CorpusStudy) -> dict[str, Estimate]:
    """How much learning rates and regularisation change, by stretches of the validation text.

    ``regularisation`` is D without dropout and other regularisation less D with them (nats).
    ``discriminator_rate`` and ``finetuning_rate`` are D and perplexity at the worst of the rates
    tried less those at the best: which these are is taken from the whole text. Each has its
    ``…_share`` of what is gained at the better of the two, below log 4 or below the initial model's
    perplexity, which is not a number where nothing is. Rates of fine-tuning at which the limit of
    epochs ended it are left out. Nothing where the profile tries nothing.
    """
    tried = study.search()
    if not tried:
        return {}
    losses = {n: study.discriminator_losses(one) for n, one in tried["discriminator"].items()}
    means, draws = means_of_stretches(list(losses.values()))
    d = dict(zip(losses, means, strict=True)), dict(zip(losses, draws.T, strict=True))
    for one in d:
        one[START] = math.log(4)
    ended = {
        name: one
        for name, one in tried["finetuning"].items()
        if one.progress.at_plateau(study.settings.finetuning)
    }
    compared = {START: study.initial} | ended
    perplexities = perplexities_of_stretches(
        {name: study.token_log_probs(one)["valid"] for name, one in compared.items()}
    )
    rates = [name for name in losses if name != UNREGULARISED]
    found = _lost("regularisation", UNREGULARISED, OWN, *d)
    found |= _lost_at_worst("discriminator_rate", rates, *d)
    found |= _lost_at_worst("finetuning_rate", list(ended), *perplexities)
    return {f"{study.name}.search.{name}": one for name, one in found.items()}


def _lost_at_worst(name: str, rates: list[str], values: dict, resampled: dict) -> dict:
    if len(rates) < 2:
        return {}
    worst, best = max(rates, key=values.get), min(rates, key=values.get)
    return _lost(name, worst, best, values, resampled)


def _lost(name: str, worse: str, better: str, values: dict, resampled: dict) -> dict:
    """What one has more than the other, and its share of what the other has less than ``START``."""

    def loss(row: dict):
        return row[worse] - row[better]

    def gain(row: dict):
        return row[START] - row[better]

    if gain(values) <= 0:
        share = Estimate.single(math.nan, NO_GAIN)
    else:
        share = stretched(lambda row: loss(row) / gain(row), values, resampled)
        if interval(gain(resampled))[0] <= 0:  # then the share may be anything
            share = replace(share, low=-math.inf, high=math.inf)
    return {name: stretched(loss, values, resampled), f"{name}_share": share}


def answer(study: CorpusStudy, found: Mapping[str, Estimate]) -> Iterator[str]:
    """A sentence for each number of :func:`of_search`."""
    says = {
        "regularisation": "D of the discriminator without regularisation less D with it: {} nats",
        "discriminator_rate": "D at the worst of the discriminator's rates less the best: {} nats",
        "finetuning_rate": "Validation perplexity at the worst of fine-tuning's rates less the "
        "best: {} points",
    }
    if not found:
        yield f"Other learning rates, and a discriminator without regularisation: {NOT_RUN}."
    for name, sentence in says.items():
        one = found.get(f"{study.name}.search.{name}")
        if one:
            number = f"{one.value:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
            share = found[f"{study.name}.search.{name}_share"].value
            of_all = "" if math.isnan(share) else f", {100 * share:.0f} % of what is gained"
            yield f"{sentence.format(number)}{of_all}."
