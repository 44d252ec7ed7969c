"""What section 4.1 says of learning rates and regularisation, where a profile tries others."""

from collections.abc import Iterable, Iterator, Mapping

import pandas as pd

from paperlib.corpus_study import OWN, UNREGULARISED, CorpusStudy
from paperlib.estimates import Estimate, means_of_stretches
from paperlib.reporting.corpus_tables import NOT_RUN
from paperlib.reporting.stretches import perplexities_of_stretches, stretched
from paperlib.training import Progress

CRITERIA = {
    "discriminator": "valid. D",
    "finetuning": "valid. perplexity",
    "cross_entropy": "valid. perplexity",
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
    return network, kind, name, rate, CRITERIA[kind], run.best, run.best_epoch, run.epoch


def for_people(found: pd.DataFrame) -> pd.DataFrame:
    """The same to five digits; one row that says so where nothing was tried."""
    if found.empty:
        return pd.DataFrame([dict.fromkeys(COLUMNS, NOT_RUN)])
    return found.assign(best=found["best"].map("{:.5f}".format))


def of_search(study: CorpusStudy) -> dict[str, Estimate]:
    """How much learning rates and regularisation change, by stretches of the validation text.

    ``regularisation`` is D without dropout and other regularisation less D with them (nats).
    ``discriminator_rate`` and ``finetuning_rate`` are D and perplexity at the worst of the rates
    tried less those at the best: which these are is taken from the whole text. Nothing where the
    profile tries nothing.
    """
    tried = study.search()
    if not tried:
        return {}
    losses = {n: study.discriminator_losses(one) for n, one in tried["discriminator"].items()}
    means, draws = means_of_stretches(list(losses.values()))
    d = dict(zip(losses, means, strict=True)), dict(zip(losses, draws.T, strict=True))
    log_q = {n: study.token_log_probs(one)["valid"] for n, one in tried["finetuning"].items()}
    perplexities = perplexities_of_stretches(log_q)
    found = {
        "regularisation": stretched(lambda row: row[UNREGULARISED] - row[OWN], *d),
        "discriminator_rate": _worst_less_best(*d),
        "finetuning_rate": _worst_less_best(*perplexities),
    }
    return {f"{study.name}.search.{name}": one for name, one in found.items() if one}


def _worst_less_best(values: dict, resampled: dict) -> Estimate | None:
    rates = [name for name in values if name != UNREGULARISED]
    if len(rates) < 2:
        return None
    best, worst = min(rates, key=values.get), max(rates, key=values.get)
    return stretched(lambda row: row[worst] - row[best], values, resampled)


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
            yield f"{sentence.format(number)}."
