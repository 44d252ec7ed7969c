"""Measures for the ledger: names, values and intervals, against small cases."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from paperlib.estimates import LIMITED, NO_GAIN, ONE_RUN, Estimate
from paperlib.reporting import measures, paper
from paperlib.reporting.claims import declared, ledger
from paperlib.reporting.stretches import perplexities_of_stretches
from paperlib.settings import StreamTraining, load
from paperlib.training import Progress


def rows(shift=0.0):
    """Table 1 as the paper has it, in the form that a seed gives it."""
    filled = {"diff_mean": 0.0, "diff_std": 0.0, "other_ppl": 80.0, "rare_other_ppl": 700.0}
    return {
        model: {name: value + shift for name, value in (filled | row).items()}
        for model, row in paper.TABLE1.items()
    }


def resampled():
    """The same as arrays over resamples."""
    draws = np.linspace(-1, 1, 201)
    return {
        model: {name: value + draws for name, value in row.items()} for model, row in rows().items()
    }


def test_the_papers_own_table_reproduces_every_claim_about_it():
    found = measures.of_table1([rows(), rows(1.0)], resampled())
    table = {name: e.__dict__ | {"paper_size": True} for name, e in found.items()}
    about = {
        name: claim
        for name, claim in declared().items()
        if claim.measure in found and claim.rule in ("size", "near") and "-" in claim.measure
    }
    assert len(about) > 16
    assert "perturbed_ftd_overestimates_frequent" in about
    assert {entry["verdict"] for entry in ledger(about, table)} == {"reproduced"}
    assert found["order.smallest_gap"].value == pytest.approx(0.01)


def test_differences_are_paired_in_the_bootstrap():
    found = measures.of_table1([rows()], resampled())
    change = found["perturbed_ftd-perturbed.test_ppl"]
    assert (change.low, change.high) == pytest.approx((-0.38, -0.38))
    level = found["perturbed.test_ppl"]
    assert (level.low, level.high) == pytest.approx((86.01 - 0.95, 86.01 + 0.95))


def test_probabilities_are_decades_of_their_mean():
    by_sentence = {"q0": np.array([1e-8, 3e-8]), "p": np.array([1e-3, 1e-3])}
    found = measures.of_probabilities([by_sentence])
    assert found["chosen.q0"].value == pytest.approx(math.log10(2e-8))
    assert found["chosen.q0"].low == pytest.approx(-8)
    assert found["chosen.p"].value == pytest.approx(-3)


def test_perplexities_of_stretches():
    rng = np.random.default_rng(0)
    log_q = {"a": -rng.gamma(2, size=2003).astype(np.float32)}
    log_q["b"] = log_q["a"] - np.float32(0.1)
    values, draws = perplexities_of_stretches(log_q)
    expected = np.exp(-np.mean(log_q["a"], dtype=np.float64))
    assert values["a"] == pytest.approx(expected)
    assert np.allclose(draws["b"] / draws["a"], math.exp(0.1), rtol=1e-5)  # paired
    error = np.std(log_q["a"]) / 2003**0.5
    assert np.log(draws["a"]).std() == pytest.approx(error, rel=0.3)


def test_measures_are_found_again(tmp_path):
    estimate = Estimate(1.23456789, 1.0, 2.0, "t interval over 3 seeds", 3, 0.5)
    measures.save_measures(tmp_path, "03", {"a.b": estimate}, paper_size=True)
    plan = load("smoke")
    (name, row), *others = measures.load_measures(tmp_path, plan).items()
    assert (name, others) == ("a.b", [])
    assert row == estimate.__dict__ | {"paper_size": True, "notebook": "03"}

    measures.save_measures(tmp_path, "04", {"a.b": estimate}, paper_size=True)
    with pytest.raises(ValueError, match=r"'a\.b' is in two tables"):
        measures.load_measures(tmp_path, plan)


def test_measures_of_experiments_that_are_not_run_are_left_out(tmp_path):
    one = Estimate.single(1.0)
    for number in ("03", "06", "07", "10"):
        measures.save_measures(tmp_path, number, {f"of_{number}": one}, paper_size=True)
    assert len(measures.load_measures(tmp_path, load("smoke"))) == 4
    assert list(measures.load_measures(tmp_path, load("smoke", experiments="none"))) == ["of_03"]


def test_a_notebook_may_have_measured_nothing(tmp_path):
    """As where no experiment that is run has what it is about."""
    measures.save_measures(tmp_path, "07", {}, paper_size=True)
    assert measures.load_measures(tmp_path, load("smoke")) == {}


def test_no_row_is_cut_where_a_notebook_shows_them(tmp_path):
    many = {f"name.{number}": Estimate.single(number + 0.25) for number in range(100)}
    shown = measures.save_measures(tmp_path, "03", many, paper_size=True).to_html()
    assert all(name in shown for name in many)
    assert "50.25" in shown


def test_what_has_the_papers_size():
    paper_profile, quick = load("paper"), load("quick")
    assert measures.synthetic_at_paper_size(paper_profile.synthetic)
    assert measures.synthetic_at_paper_size(load("overnight").synthetic)
    assert not measures.synthetic_at_paper_size(quick.synthetic)
    assert measures.synthetic_at_paper_size(quick.synthetic, ["language"])
    assert measures.experiments_at_paper_size(paper_profile.corpora)
    assert not measures.experiments_at_paper_size(load("medium").corpora)  # few epochs
    assert not measures.experiments_at_paper_size(quick.corpora)


@pytest.mark.parametrize(
    ("epoch", "schedule", "basis", "low", "high"),
    [
        (9, "plateau", LIMITED, 14, math.inf),
        (10, "plateau", ONE_RUN, math.nan, math.nan),  # where the limit is, too
        (10, "linear", LIMITED, math.nan, math.nan),
    ],
)
def test_a_training_that_its_limit_ended_is_known_from_below(epoch, schedule, basis, low, high):
    training = StreamTraining(max_epochs=epoch, patience=3, schedule=schedule)
    run = Progress(1.0, epoch=epoch, best_epoch=7, epochs_without_improvement=epoch - 7)
    found = measures._epochs(run, training, parts=2)
    assert (found.value, found.basis) == (14, basis)
    assert (found.low, found.high) == pytest.approx((low, high), nan_ok=True)


class Finetuning:
    """What :func:`measures.of_finetuning` reads of a study; three epochs at most."""

    name = "study"

    def __init__(self, perplexities):
        history = [
            {"perplexity": value, "loss": math.log(value), "reverse_kl": 0.0}
            for value in perplexities
        ]
        best = int(np.argmin(perplexities))
        last = len(perplexities) - 1
        progress = Progress(
            1.0, epoch=last, best_epoch=best, epochs_without_improvement=last - best
        )
        self.run = SimpleNamespace(history=history, progress=progress)
        self.settings = SimpleNamespace(finetuning=StreamTraining(max_epochs=3, patience=2))

    def options(self):
        return ["discriminator"]

    initial = None

    def finetuned(self, option="discriminator"):
        return self.run

    def valid_parts(self, trained, option):
        """No words differ from one another, and there is no divergence."""
        at = 0 if trained is None else self.run.progress.best_epoch
        return np.full(40, self.run.history[at]["loss"]), np.zeros(40)


@pytest.mark.parametrize(
    ("perplexities", "share", "basis"),
    [
        ([60.0, 52.0, 50.0, 51.0], 0.8, LIMITED),
        ([60.0, 50.0, 51.0, 52.0], 1.0, ONE_RUN),
        ([60.0, 61.0, 62.0], math.nan, NO_GAIN),
    ],
)
def test_the_first_epochs_share_is_one_of_a_whole_alone(perplexities, share, basis):
    found = measures.of_finetuning(Finetuning(perplexities))["study.discriminator.first_epoch"]
    assert found.value == pytest.approx(share, nan_ok=True)
    assert found.basis == basis


@pytest.mark.parametrize("knows", [True, False])
def test_an_increase_of_both_has_the_interval_that_validation_left(knows):
    """No weights are kept then; the loss, whose relative change is the smaller one, decides."""
    study = Finetuning([60.0, 62.0, 63.0])
    for entry in study.run.history:
        if knows:
            entry |= {"loss_error": 0.004, "cross_entropy_error": 0.1}
    found = measures.of_finetuning(study)
    one = found["study.discriminator.smaller_change"]
    assert one.value == pytest.approx(math.log(62) / math.log(60) - 1)
    assert found["study.discriminator.loss_change"].value == 0
    verdict, _ = declared()["dropout_increases_both"].verdict(
        one.value, one.low, one.high, one.basis
    )
    assert verdict == ("reproduced" if knows else "partly")
    if knows:
        margin = 1.984 * 0.004 / math.log(60)
        assert one.high - one.value == pytest.approx(margin, rel=1e-3)
        assert one.value - one.low == pytest.approx(margin, rel=1e-3)
    else:
        assert one.basis == ONE_RUN


def test_a_decrease_is_that_of_the_weights_that_were_kept():
    found = measures.of_finetuning(Finetuning([60.0, 57.0, 58.0]))
    one = found["study.discriminator.smaller_change"]
    assert one.value == pytest.approx(57 / 60 - 1)
    assert (one.low, one.high) == pytest.approx((one.value, one.value))  # all words alike


def test_curves_are_compared_by_quotients():
    columns = ["lift", "of_p_hat", "almost_frequent", "frequent", "best_change", "others_change"]
    seed = pd.DataFrame(
        [
            [4, 0.8, 0.01, 0.02, -0.2, 0.0],
            [10, 2, 0.2, 0.3, -0.1, 0.4],
            [1.2, 0.3, 0.02, 0.03, 0.0, 0.1],
        ],
        index=["discriminator_0.1", "cross_entropy_0.1", "cross_entropy_0.01"],
        columns=columns,
    )
    found = {name: e.value for name, e in measures.of_curves([seed]).items()}
    assert found["curves.oscillation.frequent"] == pytest.approx(15)
    assert found["curves.oscillation.almost_frequent"] == pytest.approx(20)
    assert found["curves.cross_entropy_0.1.share_of_gain"] == pytest.approx(0.5)
    assert found["curves.cross_entropy_0.01.lift"] == 1.2
    assert found["curves.discriminator_0.1.of_p_hat"] == 0.8
    assert found["curves.cross_entropy_0.1.others_change"] == 0.4
    assert "curves.oscillation_faster.frequent" not in found

    without_gain = seed.copy()
    without_gain.loc["discriminator_0.1", "best_change"] = 0.0
    for seeds in ([without_gain], [seed, without_gain]):
        share = measures.of_curves(seeds)["curves.cross_entropy_0.1.share_of_gain"]
        assert math.isnan(share.value)
        assert share.basis == NO_GAIN

    with_faster = pd.concat([seed, seed.iloc[:1].rename(lambda _: "discriminator_1") * 5])
    twice = with_faster.assign(frequent=with_faster["frequent"] * 4)
    found = measures.of_curves([with_faster, twice])
    assert found["curves.oscillation_faster.frequent"].value == pytest.approx(3)
    assert found["curves.cross_entropy_0.1.lift"].value == pytest.approx(10)


def test_curves_that_a_profile_does_not_draw_have_no_measures():
    seed = pd.DataFrame({"lift": 4.0, "of_p_hat": 0.8}, index=["discriminator_0.3"])
    assert measures.of_curves([seed]) == {}
    seed = pd.DataFrame({"lift": 4.0, "of_p_hat": 0.8}, index=["discriminator_0.1"])
    assert set(measures.of_curves([seed])) == {"curves.discriminator_0.1.of_p_hat"}
