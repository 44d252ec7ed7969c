"""Other learning rates and a discriminator without regularisation, at their smallest."""

from types import SimpleNamespace

import numpy as np
import pytest

from paperlib.corpus_study import OWN, UNREGULARISED, CorpusStudy
from paperlib.evaluation import perplexity
from paperlib.reporting import corpus_search
from paperlib.reporting.claims import declared
from paperlib.reporting.corpus_tables import NOT_RUN
from paperlib.settings import load


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield CorpusStudy(load("smoke"), "doc_ptb")


def test_each_training_differs_from_the_experiments_own_in_one_thing(study):
    found = study.search()
    assert list(found["discriminator"]) == [OWN, "rate 0.5", UNREGULARISED]
    assert list(found["finetuning"]) == [OWN, "rate 0.05"]
    assert list(found["cross_entropy"]) == [OWN, "rate 0.01"]
    assert found["discriminator"][OWN].folder == study.discriminator.folder
    assert found["finetuning"][OWN].folder == study.finetuned().folder
    folders = {one.folder for tried in found.values() for one in tried.values()}
    assert len(folders) == 7
    names = [name for name, _ in study.trainings()]
    assert names[-4:] == [
        "search_discriminator_rate_0.5",
        "search_discriminator_unregularised",
        "search_finetuning_rate_0.05",
        "search_cross_entropy_rate_0.01",
    ]


def test_measures_are_those_of_the_weights_that_were_kept(study):
    tried, found = study.search(), corpus_search.of_search(study)
    best = {name: one.progress.best for name, one in tried["discriminator"].items()}
    regularisation = found["doc_ptb.search.regularisation"]
    assert regularisation.value == pytest.approx(best[UNREGULARISED] - best[OWN], abs=1e-6)
    rate = found["doc_ptb.search.discriminator_rate"]
    assert rate.value == pytest.approx(abs(best["rate 0.5"] - best[OWN]), abs=1e-6)
    levels = [one.progress.best for one in tried["finetuning"].values()]
    rate = found["doc_ptb.search.finetuning_rate"]
    assert rate.value == pytest.approx(max(levels) - min(levels), rel=1e-3)
    for one in found.values():
        assert one.low <= one.value <= one.high

    table = corpus_search.table([study]).set_index(["training", "tried"])
    assert table.loc[("finetuning", "rate 0.05"), "learning rate"] == 0.05
    assert table.loc[("discriminator", UNREGULARISED), "best"] == best[UNREGULARISED]
    said = list(corpus_search.answer(study, found))
    assert len(said) == 3
    assert f"{regularisation.value:+.4f} (" in said[0]


def test_the_control_is_the_best_of_its_rates(study):
    tried = study.search()["cross_entropy"]
    levels = {name: study.perplexities(one)["valid"] for name, one in tried.items()}
    assert len(set(levels.values())) == 2
    best = min(levels, key=levels.get)
    assert study.models()["cross_entropy"].folder == tried[best].folder
    table = corpus_search.table([study]).set_index(["training", "tried"])
    assert table.loc[("cross_entropy", best), "best"] == pytest.approx(levels[best], rel=1e-5)


def test_every_measure_has_a_claim(study):
    measured = {one.measure for one in declared().values()}
    assert corpus_search.of_search(study).keys() <= measured


def test_the_worst_less_the_best_may_be_less_than_nothing():
    """Which they are is taken from the whole text, so that its interval has 0 where none is."""
    rng = np.random.default_rng(0)
    words = -rng.gamma(4, 1, 4000)
    log_q = {name: words + 0.2 * rng.standard_normal(4000) for name in (OWN, "rate 2", "rate 3")}
    study = SimpleNamespace(
        name="a",
        search=lambda: {
            "discriminator": {OWN: OWN, UNREGULARISED: "rate 2"},
            "finetuning": {name: name for name in log_q},
        },
        discriminator_losses=log_q.__getitem__,
        token_log_probs=lambda name: {"valid": log_q[name]},
    )
    found = corpus_search.of_search(study)
    one = found["a.search.finetuning_rate"]
    levels = [perplexity(values) for values in log_q.values()]
    assert one.value == pytest.approx(max(levels) - min(levels))
    assert one.low < 0 < one.value
    assert "a.search.discriminator_rate" not in found  # no other rate was tried


def test_where_nothing_is_tried_it_says_so(study):
    settings = study.settings.model_copy(update={"search": None})
    profile = load("smoke").model_copy(update={"corpora": {"doc_ptb": settings}})
    other = CorpusStudy(profile, "doc_ptb")
    assert corpus_search.of_search(other) == {}
    assert not any(name.startswith("search") for name, _ in other.trainings())
    table = corpus_search.table([other])
    assert table.empty
    assert (corpus_search.for_people(table) == NOT_RUN).all(axis=None)
    (sentence,) = corpus_search.answer(other, {})
    assert sentence.endswith(f"{NOT_RUN}.")
