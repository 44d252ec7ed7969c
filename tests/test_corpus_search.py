"""Other learning rates and a discriminator without regularisation, at their smallest."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from paperlib.corpus_study import CONTROLS, OWN, UNREGULARISED, CorpusStudy
from paperlib.estimates import NO_GAIN
from paperlib.evaluation import perplexity
from paperlib.reporting import corpus_search
from paperlib.reporting.claims import declared
from paperlib.reporting.corpus_search import START
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
    assert list(found["cross_entropy_dropout"]) == [OWN, "rate 0.01"]
    assert len(folders) == 9
    names = [name for name, _ in study.trainings()]
    assert names[-5:] == [
        "search_discriminator_rate_0.5",
        "search_discriminator_unregularised",
        "search_finetuning_rate_0.05",
        "search_cross_entropy_rate_0.01",
        "search_cross_entropy_dropout_rate_0.01",
    ]


def test_measures_are_those_of_the_weights_that_were_kept(study):
    tried, found = study.search(), corpus_search.of_search(study)
    best = {name: one.progress.best for name, one in tried["discriminator"].items()}
    regularisation = found["doc_ptb.search.regularisation"]
    assert regularisation.value == pytest.approx(best[UNREGULARISED] - best[OWN], abs=1e-6)
    rate = found["doc_ptb.search.discriminator_rate"]
    assert rate.value == pytest.approx(abs(best["rate 0.5"] - best[OWN]), abs=1e-6)
    share = found["doc_ptb.search.regularisation_share"]
    below = math.log(4) - best[OWN]
    if below > 0:
        assert share.value == pytest.approx(regularisation.value / below, rel=1e-3)
    else:
        assert share.basis == NO_GAIN

    table = corpus_search.table([study]).set_index(["training", "tried"])
    assert table.loc[("finetuning", "rate 0.05"), "learning rate"] == 0.05
    curve = table.loc[("finetuning", "rate 0.05"), "perplexity, epoch by epoch"]
    history = tried["finetuning"]["rate 0.05"].history
    assert curve.split(" → ") == [f"{entry['perplexity']:.2f}" for entry in history]
    assert table.loc[("discriminator", UNREGULARISED), "best"] == best[UNREGULARISED]
    said = list(corpus_search.answer(study, found))
    assert len(said) == len(found) / 2
    assert f"{regularisation.value:+.4f} (" in said[0]


@pytest.mark.parametrize("control", CONTROLS)
def test_the_control_is_the_best_of_its_rates(study, control):
    tried = study.search()[control]
    levels = {name: study.perplexities(one)["valid"] for name, one in tried.items()}
    assert len(set(levels.values())) == 2
    best = min(levels, key=levels.get)
    assert study.models()[control].folder == tried[best].folder
    table = corpus_search.table([study]).set_index(["training", "tried"])
    assert table.loc[(control, best), "best"] == pytest.approx(levels[best], rel=1e-5)


def test_every_measure_has_a_claim(study):
    measured = {one.measure for one in declared().values()}
    shares = {name for name in corpus_search.of_search(study) if name.endswith("_share")}
    assert shares
    assert shares <= measured


def a_training(name, at_plateau=True):
    return SimpleNamespace(name=name, progress=SimpleNamespace(at_plateau=lambda _: at_plateau))


def a_study():
    """Three rates that differ by chance alone; their names, and what each says of every token."""
    rng = np.random.default_rng(0)
    words, rates = -rng.gamma(4, 1, 4000), [OWN, "rate 2", "rate 3"]
    log_q = {name: words + 0.2 * rng.standard_normal(4000) for name in rates}
    log_q[START] = words - 0.1
    tried = {
        "discriminator": {OWN: a_training(OWN), UNREGULARISED: a_training("rate 2")},
        "finetuning": {name: a_training(name) for name in rates},
    }
    study = SimpleNamespace(
        name="a",
        settings=SimpleNamespace(finetuning=None),
        initial=a_training(START),
        search=lambda: tried,
        discriminator_losses=lambda one: log_q[one.name],
        token_log_probs=lambda one: {"valid": log_q[one.name]},
    )
    return study, rates, log_q


def test_the_worst_less_the_best_may_be_less_than_nothing():
    """Which they are is taken from the whole text, so that its interval has 0 where none is."""
    study, rates, log_q = a_study()
    found = corpus_search.of_search(study)
    one, share = (found[f"a.search.finetuning_rate{end}"] for end in ("", "_share"))
    *levels, start = (perplexity(log_q[name]) for name in (*rates, START))
    assert one.value == pytest.approx(max(levels) - min(levels))
    assert one.low < 0 < one.value
    assert share.value == pytest.approx(one.value / (start - min(levels)))
    assert share.low < 0 < share.value < share.high
    assert math.isfinite(share.high)
    assert "a.search.discriminator_rate" not in found  # no other rate was tried


def test_a_rate_whose_training_the_limit_ended_is_left_out_and_no_gain_has_no_share():
    study, rates, log_q = a_study()
    study.search()["finetuning"]["rate 3"] = a_training("rate 3", at_plateau=False)
    one = corpus_search.of_search(study)["a.search.finetuning_rate"]
    levels = [perplexity(log_q[name]) for name in rates[:2]]
    assert one.value == pytest.approx(max(levels) - min(levels))
    log_q[START] += 0.1  # now there may be no gain, and the share may be anything
    share = corpus_search.of_search(study)["a.search.finetuning_rate_share"]
    assert share.basis == NO_GAIN or (share.low, share.high) == (-math.inf, math.inf)
    log_q[START] += 5.0  # now all end higher than they began
    found = corpus_search.of_search(study)
    assert found["a.search.finetuning_rate"].value == one.value
    assert found["a.search.finetuning_rate_share"].basis == NO_GAIN
    *_, said = corpus_search.answer(study, found)
    assert said.endswith("points.")


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
