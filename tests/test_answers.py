"""Answers of notebook 09: sentences that follow from intervals."""

import pandas as pd
import pytest

from paperlib.beyond import NONE, ORACLE, TRAINED, Variant
from paperlib.estimates import CANNOT_TELL, HIGHER, LOWER, UNCHANGED
from paperlib.reporting import answers


def pair(question, one, other, verdict, **fields):
    """A row of the comparisons; numbers are of the verdict's sign."""
    middle = {LOWER: -1.0, HIGHER: 1.0, CANNOT_TELL: 0.01, UNCHANGED: 0.0}[verdict]
    half = 0.0 if verdict == UNCHANGED else 0.5
    numbers = {"difference": middle, "low": middle - half, "high": middle + half}
    row = {"question": question, "one": one, "other": other, "verdict": verdict} | numbers
    return row | {"rate": 0.1, "of": "perturbed"} | fields


def groups(**models):
    """Rows for models by ``(rare mean, frequent mean)``, with narrow intervals."""
    return pd.DataFrame(
        {"model": name, "words": words, "mean": mean, "low": mean - 0.001, "high": mean + 0.001}
        for name, means in models.items()
        for words, mean in zip(("rare", "frequent"), means, strict=True)
    )


def test_an_interval_around_zero_cannot_tell():
    says = answers.compared(pd.Series(pair(4, "a", "b", CANNOT_TELL)))
    assert says == "the test sentences cannot tell *a* from *b*: +0.010 (-0.490 to +0.510)"
    assert "come to the same" in answers.compared(pd.Series(pair(4, "a", "b", UNCHANGED)))
    assert answers.compared(pd.Series(pair(4, "a", "b", LOWER))).startswith("*a* is lower than *b*")


def test_a_difference_that_is_told_from_none_is_not_shown_as_none():
    small = {"difference": 3.2e-5, "low": 2.1e-5, "high": 4.0e-5}
    says = answers.compared(pd.Series(pair(4, "a", "b", HIGHER, **small)))
    assert says == "*a* is higher than *b*: +0.00003 (+0.00002 to +0.00004)"
    assert answers.places_of(-0.2, -0.001, 3) == 3
    assert answers.places_of(-1e-5, 1e-5, 3) == 3
    assert answers.places_of(0.0, 0.0, 3) == 3


class Study:
    """Of the comparisons, what the answers ask for."""

    def rate(self, variant):
        return 1.0 if variant.fast else 0.1

    def repair_variants(self):
        return [Variant(p_hat, of=of) for of in answers.NAMES for p_hat in (TRAINED, NONE)]


class Compared:
    """Shares that are won back, in the place of the comparisons'."""

    study = Study()

    def recovered(self, *variants):
        value = {ORACLE: 1.29, TRAINED: 0.14, NONE: 0.34}[variants[0].p_hat]
        value -= 0.07 if len(variants) > 1 else 0
        return {"recovered": value, "low": value - 0.02, "high": value + 0.02}


def test_more_than_all_is_explained():
    rows = pd.DataFrame([pair(1, "oracle", "discriminator", LOWER)])
    first, *_ = answers.better_discriminator(Compared(), rows)
    assert "oracle 129% (127% to 131%). More than 100%, with oracle: other words gain too." in first


def test_differences_of_shares_are_percentage_points():
    rows = pd.DataFrame(pair(5, "a", "b", LOWER, of=of) for of in answers.NAMES)
    *_, last = answers.repairs(Compared(), rows)
    assert last.endswith("the shares won back differ by +7 percentage points (+5 to +9).")


def test_fine_tuning_that_kept_its_start_says_so():
    kinds = ("forward", "reverse")
    start = {"model": "perturbed model", **dict.fromkeys(kinds, 1.0)}
    rows = [start]
    for name, verdict in (("perturbed model ftd.", LOWER), ("discriminator, rate 1", UNCHANGED)):
        row = {"model": name, "from": "perturbed", "reverse": 0.9, "reverse_change": -0.1}
        rows.append(row | {f"{kind}_verdict": verdict for kind in kinds})
    tuned, kept, _ = answers.divergences(pd.DataFrame(rows))
    assert tuned == "perturbed → perturbed model ftd.: KL(p‖q) is lower; KL(q‖p) is lower."
    assert "no epoch was better on validation than the start" in kept


@pytest.mark.parametrize(
    ("verdicts", "says"),
    [
        (
            (LOWER, LOWER, CANNOT_TELL),
            "the exact sum is better than one sample with both; with our discriminator the test "
            "sentences cannot tell it from cross-entropy alone.",
        ),
        (
            (LOWER, HIGHER, UNCHANGED),
            "better than one sample with our discriminator and the exact sum is worse than one "
            "sample with the oracle; with our discriminator it gains as much as",
        ),
        (
            (CANNOT_TELL, CANNOT_TELL, HIGHER),
            "So the test sentences cannot tell the exact sum from one sample with both; with our "
            "discriminator it gains less than",
        ),
    ],
)
def test_whether_the_sum_is_better_is_concluded(verdicts, says):
    names = ("discriminator", "discriminator, exact sum", "oracle", "oracle, exact sum")
    estimates = pd.DataFrame(
        {"variant": name, "at": "start", "gradient_noise": 1.0, "gradient_bias": 0.1}
        for name in names
    )
    others = ("discriminator", "oracle", "cross-entropy alone")
    ours = ("discriminator, exact sum", "oracle, exact sum", "discriminator, exact sum")
    rows = [pair(3, *names) for names in zip(ours, others, verdicts, strict=True)]
    seconds = dict.fromkeys(names, 1.0)
    *_, last = answers.one_sample_or_sum(estimates, pd.DataFrame(rows), seconds)
    assert says in last


def test_the_papers_sentence_is_judged_by_the_numbers():
    table = groups(good=(0.02, -0.002), damaged=(0.02, -0.2), ptb=(-0.03, 0.05))
    bins = pd.DataFrame(
        {"model": name, "bin": "1–10", "low": -0.1, "high": 0.1}
        for name in ("good", "damaged", "ptb")
    )
    *each, last = answers.who_gains(bins, table)
    assert "holds for 1 of 3 models" in last
    assert "rare words gain: +0.02000" in each[0]
    assert "rare words lose: -0.03000" in each[2]
    assert "frequent words lose: -0.20000" in each[1]


def test_where_p_hat_parts_is_judged_by_intervals():
    names = ("frequent", "almost frequent", "other", "chosen word")
    changes = [(-0.1, -0.2, -0.05), (0.1, 0.02, 0.2), (0.1, -0.1, 0.3), (-0.5, -0.6, -0.4)]
    rms = [(0.2, 0.1, 0.3), (0.8, 0.6, 1.0), (0.9, 0.7, 1.1), (0.3, 0.2, 0.4)]
    rows = [
        {"estimate": "p̂ (discriminator)", "class": name}
        | dict(zip(("change", "change_low", "change_high"), change, strict=True))
        | dict(zip(("rms", "rms_low", "rms_high"), size, strict=True))
        for name, change, size in zip(names, changes, rms, strict=True)
    ]
    others = [row | {"estimate": "q₀", "rms_low": 9.0, "rms_high": 9.0} for row in rows]
    nearer, farther, same, chosen, most = answers.where_p_hat_parts(pd.DataFrame(others + rows))
    assert nearer == (
        "frequent: p̂ is nearer to p than q₀ is: its rms distance from p is 0.20 nats, which is "
        "-10.0% (-20.0% to -5.0%) relative to q₀'s."
    )
    assert "farther from p than" in farther
    assert "the test sentences cannot tell p̂'s distance from p from that of q₀: its rms" in same
    assert "nats, which is -50.0%" in chosen
    assert most.endswith("at: almost frequent or other.")  # they cannot be told apart


def test_an_answer_is_a_list():
    assert answers.markdown(iter(["one.", "two."])) == "- one.\n- two."
