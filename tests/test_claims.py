"""The ledger: what is declared, what the rules decide, and that nothing in it is typed."""

import json
import math

import numpy as np
import pytest
from conftest import CHECKOUT
from hypothesis import given
from hypothesis import strategies as st

from paperlib import notebooks
from paperlib.estimates import LIMITED, NO_GAIN, ONE_RUN
from paperlib.reporting import claims, paper
from paperlib.reporting.claims import (
    NO_NUMBER,
    NOT_MEASURED,
    NOT_REPRODUCED,
    NOT_RUN,
    PARTLY,
    REPRODUCED,
    UNMOVED,
    Claim,
)
from paperlib.reporting.measures import load_measures
from paperlib.settings import SettingsError, load

DECLARED = claims.declared()
NEEDS = {"near": {"tolerance": 0.1}, "covers": {"tolerance": 5.0}}
NEEDS |= {rule: {"limit": 0.0} for rule in ("above", "below")}


def claim(rule, **fields):
    """A claim with this rule."""
    defaults = {"place": "here", "says": "so", "rule": rule} | NEEDS.get(rule, {})
    return Claim(**defaults | fields)


def verdict(rule, value, low, high, **fields):
    """What the rule decides."""
    return claim(rule, **fields).verdict(value, low, high)[0]


def why(rule, value, low, high, basis="two seeds", **fields):
    """The reason of the rule's verdict."""
    return claim(rule, **fields).verdict(value, low, high, basis)[1]


def test_rules_look_at_the_interval_and_not_at_the_value():
    assert verdict("sign", -0.4, -0.5, -0.3, paper=-0.38) == REPRODUCED
    assert verdict("sign", -0.4, -0.9, 0.1, paper=-0.38) == PARTLY
    assert verdict("sign", 0.2, 0.1, 0.3, paper=-0.38) == NOT_REPRODUCED
    assert verdict("size", -0.3, -0.4, -0.2, paper=-0.38) == REPRODUCED
    assert verdict("size", -0.3, -0.5, -0.1, paper=-0.38) == PARTLY
    assert verdict("size", -0.1, -0.12, -0.08, paper=-0.38) == PARTLY
    assert verdict("near", 1.0, 0.95, 1.05, paper=1.0) == REPRODUCED
    assert verdict("near", 1.2, 1.15, 1.25, paper=1.0) == PARTLY
    assert verdict("near", 1.5, 1.4, 1.6, paper=1.0) == NOT_REPRODUCED
    assert verdict("above", 2.0, 1.0, 3.0, limit=0.5) == REPRODUCED
    assert verdict("above", 2.0, 0.0, 3.0, limit=0.5) == PARTLY
    assert verdict("below", 2.0, 1.0, 3.0, limit=0.5) == NOT_REPRODUCED
    assert verdict("below", 2.0, 1.0, 3.0, limit=0.5, partly=1.5) == PARTLY
    assert verdict("covers", 76.0, 72.0, 80.0, paper=78.14) == REPRODUCED
    assert verdict("covers", 76.0, 75.0, 77.0, paper=77.5) == PARTLY
    assert verdict("covers", 76.0, 75.0, 77.0, paper=82.0) == NOT_REPRODUCED


def test_a_wide_interval_that_covers_the_papers_number_supports_nothing():
    wide = {"value": 76.0, "low": 16.0, "high": 136.0, "paper": 78.14}
    assert verdict("covers", **wide) == PARTLY
    assert "too wide to tell: two seeds" in why("covers", **wide)


def test_much_less_than_the_papers_and_perhaps_nothing_is_not_reproduced():
    assert verdict("size", -0.05, -0.12, 0.02, paper=-0.38) == NOT_REPRODUCED
    assert verdict("size", -0.1, -0.3, 0.1, paper=-0.38) == PARTLY


@pytest.mark.parametrize(
    ("rule", "numbers", "paper_value", "says"),
    [
        ("sign", (-0.4, -0.9, 0.1), -0.38, "too wide to tell: two seeds"),
        ("sign", (0.2, 0.1, 0.3), -0.38, "other sign"),
        ("sign", (0.0, 0.0, 0.0), -0.38, "no change"),
        ("size", (-0.1, -0.12, -0.08), -0.38, "smaller than the paper's"),
        ("size", (-1.0, -1.1, -0.9), -0.38, "larger than the paper's"),
        ("size", (-0.05, -0.12, 0.02), -0.38, "less than half"),
        ("near", (1.2, 1.15, 1.25), 1.0, "higher than the paper's"),
        ("near", (1.0, 0.5, 1.5), 1.0, "too wide to tell"),
        ("near", (1.1, 1.07, 1.13), 1.0, "at the edge"),
        ("sign", (0.02, -0.01, 0.05), -0.38, "too wide to tell"),
        ("above", (-1.0, -1.1, -0.9), None, "lower than the rule asks"),
        ("covers", (76.0, 75.0, 77.0), 77.5, "lower than the paper's"),
        ("covers", (76.0, 75.0, 77.0), 76.5, "has the paper's number"),
    ],
)
def test_reasons(rule, numbers, paper_value, says):
    assert says in why(rule, *numbers, paper=paper_value)


@pytest.mark.parametrize("rule", ["near", "size", "sign", "above", "below", "covers"])
@given(value=st.floats(-200, 200), paper_value=st.floats(0.01, 100))
def test_one_run_without_an_interval_is_partly_at_best(rule, value, paper_value):
    one = claim(rule, paper=paper_value)
    found, reason = one.verdict(value, math.nan, math.nan, ONE_RUN)
    assert found in (PARTLY, NOT_REPRODUCED)
    assert ONE_RUN in reason


@pytest.mark.parametrize("rule", ["sign", "size"])
def test_no_change_has_no_sign(rule):
    assert verdict(rule, 0.0, 0.0, 0.0, paper=-0.15) == NOT_REPRODUCED
    assert verdict(rule, -0.001, -0.002, -0.0005, paper=-0.15, least=0.005) == NOT_REPRODUCED


@given(
    rule=st.sampled_from(["near", "size", "sign", "above", "below", "covers"]),
    paper_value=st.floats(0.01, 100),
    negative=st.booleans(),
    value=st.floats(-200, 200),
    widths=st.tuples(st.floats(0, 50), st.floats(0, 50)).map(sorted),
)
def test_a_wider_interval_is_never_more_certain(rule, paper_value, negative, value, widths):
    one = claim(rule, paper=-paper_value if negative else paper_value)
    narrow, wide = (one.verdict(value, value - width, value + width)[0] for width in widths)
    assert narrow == PARTLY or wide in (narrow, PARTLY)
    if rule == "covers" and widths[1] > one.tolerance:
        assert wide != REPRODUCED
    inner, outer = one.bands()
    assert outer[0] <= inner[0] <= inner[1] <= outer[1]


def test_every_claim_points_to_a_cell_and_a_table_there_is():
    table = notebooks.declared()
    for name, one in DECLARED.items():
        if one.cell is None:
            assert one.measure is None, name
            continue
        notebook, cell = one.cell.split("#")
        found = notebooks.find(notebook)
        assert f"measures_{notebook}" in table[found.name].tables, name
        cells = json.loads(found.source.read_text(encoding="utf-8"))["cells"]
        assert cell in {entry["id"] for entry in cells}, name


def test_every_row_of_the_papers_tables_is_there():
    values = {one.paper for one in DECLARED.values()}
    for model, row in paper.TABLE1.items():
        name = "language" if model == "true" else model
        cells = {one.measure: one.paper for one in DECLARED.values()}
        for column in row.keys() - {"other_ppl"}:
            assert cells[f"{name}.{column}"] == row[column]
        assert set(row.values()) <= values
    for row in paper.TABLE2.values():
        assert {value for value in row.values() if not isinstance(value, str)} <= values
    for name, row in paper.TABLE3.items():
        if "original" not in name:
            assert {value for pair in row.values() for value in pair if value} <= values, name
    decades = {round(math.log10(value)) for value in paper.CHOSEN_WORD.values()}
    assert decades <= values
    assert set(paper.SHARES.values()) <= values


def test_numbers_of_the_claims_are_those_of_the_paper():
    for one in DECLARED.values():
        if not one.measure:
            continue
        model, _, column = one.measure.rpartition(".")
        after, _, before = model.partition("-")
        rows = paper.TABLE1
        if after in rows and column in rows[after] and one.rule != "below":
            theirs = rows[after][column] - (rows[before][column] if before else 0)
            assert one.paper == pytest.approx(theirs), one.measure


def test_a_claim_that_is_not_measured_is_not_run():
    one = claim("near", paper=1.0, measure="m", cell="03#table1", paper_size=True)
    row = {"value": 1.0, "low": 0.99, "high": 1.01, "basis": "b", "paper_size": False}
    entries = [
        claims.ledger({"c": one}, measures)[0]
        for measures in ({}, {"m": row | {"value": np.nan}}, {"m": row})
    ]
    assert [entry["verdict"] for entry in entries] == [NOT_RUN] * 3
    assert all(entry["reason"] and "value" not in entry for entry in entries)
    assert [entry["reason"] for entry in entries[:2]] == [NOT_MEASURED, NO_NUMBER]
    limited = claims.ledger({"c": one}, {"m": row | {"paper_size": True, "basis": LIMITED}})
    assert (limited[0]["verdict"], limited[0]["reason"]) == (NOT_RUN, LIMITED)
    (entry,) = claims.ledger({"c": one}, {"m": row | {"paper_size": True, "seeds": 3, "sd": 0.1}})
    assert (entry["seeds"], entry["sd"]) == (3, 0.1)
    assert entry["verdict"] == REPRODUCED
    assert (entry["notebook"], entry["cell"]) == ("03_table_1", "table1")
    assert claims.measured(entry) == "1 (0.99 to 1.01)"


def judged(one, **row):
    """The only entry of a ledger of this claim, whose measure has this row."""
    numbers = {"low": math.nan, "high": math.nan, "basis": ONE_RUN, "paper_size": True}
    (entry,) = claims.ledger({"c": one}, {one.measure: numbers | row})
    return entry


def test_a_share_of_a_gain_that_was_not_there_is_no_measurement_that_is_missing():
    one = claim("below", limit=0.5, measure="m", cell="03#table1")
    entry = judged(one, value=math.nan, basis=NO_GAIN)
    assert (entry["verdict"], entry["reason"]) == (NOT_RUN, NO_GAIN)
    for nowhere in (-math.inf, math.inf):
        assert judged(one, value=nowhere)["verdict"] == NOT_RUN


def test_a_length_beyond_the_band_when_its_limit_ended_it_speaks_against_the_claim():
    about_30 = claim("near", paper=30, tolerance=15, partly=20, measure="m", cell="06#measures")
    at_most_20 = claim("below", limit=20, measure="m", cell="06#measures")
    ended = {"basis": LIMITED, "high": math.inf}
    for epochs in (3, 30, 48):  # more epochs might have led anywhere from here
        entry = judged(about_30, value=epochs, low=epochs, **ended)
        assert (entry["verdict"], entry["reason"]) == (NOT_RUN, LIMITED)
    for one, epochs, less in ((about_30, 51, 50), (at_most_20, 21, 20)):
        entry = judged(one, value=epochs, low=epochs, **ended)
        assert entry["verdict"] == NOT_REPRODUCED
        assert "already when ended at the limit of epochs" in entry["reason"]
        assert claims.measured(entry) == f"at least {epochs}"
        assert judged(one, value=less, low=less, **ended)["verdict"] == NOT_RUN
    # Where it ended by itself, it is known, and a number of one run.
    assert [judged(about_30, value=n)["verdict"] for n in (5, 30, 51)] == [
        NOT_REPRODUCED,
        PARTLY,
        NOT_REPRODUCED,
    ]


def test_lengths_can_fail_within_the_limits_of_the_papers_profile():
    corpora = load("paper").corpora
    found = 0
    for name, one in DECLARED.items():
        if one.unit != "epochs":
            continue
        experiment, kind, what = one.measure.split(".")
        training = "finetuning" if what == "finetuning_epochs" else kind
        limit = getattr(corpora[experiment], training).max_epochs
        assert one.bands()[1][1] < limit, name
        found += 1
    assert found == 4


def test_a_ledger_is_json_whatever_was_measured(tmp_path):
    one = claim("above", limit=1.0, measure="m", cell="03#table1")
    rows = [
        {"value": -math.inf},
        {"value": math.nan},
        {"value": 2.0, "low": -math.inf, "high": math.inf, "sd": math.nan, "basis": "b"},
        {"value": 30.0, "low": 30.0, "high": math.inf, "basis": LIMITED},
    ]
    entries = [judged(one, **row) for row in rows]
    claims.save_ledger(tmp_path, "quick", "abc", entries)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "claims.json").read_text(encoding="utf-8")
    record = json.loads(text, parse_constant=refuse)
    assert record["claims"][2]["low"] is record["claims"][2]["sd"] is None


def test_controls_are_labelled_and_counted_apart():
    fields = {"limit": 0.5, "measure": "m", "cell": "03#table1", "says": "It gains."}
    theirs, ours = claim("above", **fields), claim("above", control=True, **fields)
    row = {"value": 1.0, "low": 0.9, "high": 1.1, "basis": "b", "paper_size": True}
    entries = claims.ledger({"a": theirs, "b": ours}, {"m": row})
    assert claims.count(entries)[REPRODUCED] == 1
    assert sum(claims.count(entries).values()) == 1
    assert claims.count(entries, controls=True)[REPRODUCED] == 1
    shown = claims.for_people(entries)["The paper says"].tolist()
    assert shown == ["It gains.", "Our control: It gains."]


def test_what_follows_from_the_papers_own_tables():
    """Numbers that the ledger took from two cells, or that a note states."""
    initial, without = paper.TABLE2["initial"], paper.TABLE2["no_discriminator"]
    cross_entropy = initial["valid_loss"] - initial["reverse_kl"]
    assert math.exp(cross_entropy) == pytest.approx(initial["valid_ppl"], abs=0.005)
    for name in ("no_discriminator_loss_increases", "no_discriminator_loss_size"):
        change = without["valid_loss"] - cross_entropy
        assert DECLARED[name].paper == pytest.approx(change, abs=5e-6)
    ours, original = paper.TABLE3["mos_initial"], paper.TABLE3["mos_original"]
    differences = [
        f"{one - other:.2f}"
        for text in ("ptb", "wikitext2")
        for one, other in zip(ours[text], original[text], strict=True)
        if one is not None
    ]
    note = DECLARED["training_differs"].note
    assert [word.strip(",") for word in note.split() if word.startswith("0.")] == [
        *differences,
        "0.4",
    ]
    for model in ("initial", "initial_ftd", "perturbed", "perturbed_ftd"):
        measure = f"{model}-true.ratio"
        (of_model,) = (one for one in DECLARED.values() if one.measure == measure)
        excess = paper.TABLE1[model]["ratio"] - paper.TABLE1["true"]["ratio"]
        assert of_model.paper == pytest.approx(excess)


def test_numbers_that_agree_by_construction_say_so():
    named = [name for name in DECLARED if name.startswith("perturbed_from_initial_")]
    assert len(named) == 6
    for name in (*named, "chosen_q0", "chosen_p"):
        assert DECLARED[name].note.startswith("By construction"), name
    constructed = {name for name, one in DECLARED.items() if one.constructed}
    of_language = {name for name in DECLARED if name.startswith(("share_", "true_"))}
    assert constructed == {*named, "chosen_q0", "chosen_p"} | of_language
    assert all(DECLARED[name].note for name in constructed)


ROW = {"value": 1.0, "low": 0.9, "high": 1.1, "basis": "b", "paper_size": True}


def test_where_trainings_differ_one_of_them_reproduces_nothing():
    fields = {"limit": 0.5, "measure": "m", "cell": "09#measures", "varies": True}
    low = {"value": 0.0, "low": -0.1, "high": 0.1}
    for row, alone, of_several in (
        (ROW, PARTLY, REPRODUCED),
        (ROW | low, NOT_REPRODUCED, NOT_REPRODUCED),
    ):
        for seeds, expected in ((1, alone), (3, of_several)):
            (entry,) = claims.ledger({"a": claim("above", **fields)}, {"m": row | {"seeds": seeds}})
            assert entry["verdict"] == expected
    (entry,) = claims.ledger({"a": claim("above", **fields)}, {"m": ROW})
    assert entry["reason"].endswith("by its own interval reproduced")


def test_what_rests_on_a_claim_that_fails_is_partly_at_best(tmp_path):
    fields = {"limit": 0.5, "cell": "06#measures"}
    premise = claim("above", measure="premise", **fields, says="It gains.")
    one = claim("above", measure="m", rests_on="a", **fields)
    for value, expected in ((1.0, REPRODUCED), (0.0, PARTLY)):
        measured = {"premise": ROW | {"value": value, "low": value, "high": value}, "m": ROW}
        _, entry = claims.ledger({"a": premise, "b": one}, measured)
        assert entry["verdict"] == expected
    assert entry["reason"].endswith("its premise is not reproduced: It gains.")
    path = tmp_path / "claims.toml"
    path.write_text(
        '[[groups]]\nplace = "x"\nrule = "above"\nlimit = 0\n'
        'claims = [{ name = "b", says = "so", rests_on = "a" }]\n'
    )
    with pytest.raises(SettingsError, match=r"claims\.toml: b: no claim before it is a"):
        claims.declared(path)


def test_the_size_of_a_change_is_judged_from_a_comparable_start_only():
    names = {"measure": "a-b.ppl", "start": "b.ppl", "paper_start": 52.45, "cell": "06#measures"}
    one = claim("size", paper=-0.33, **names)
    change = {"value": -0.3, "low": -0.35, "high": -0.25, "basis": "b", "paper_size": False}
    entries = [
        claims.ledger({"c": one}, {"a-b.ppl": change} | start)[0]
        for start in ({}, {"b.ppl": {"value": 430.8}}, {"b.ppl": {"value": 50.0}})
    ]
    assert [entry["verdict"] for entry in entries] == [NOT_RUN, NOT_RUN, REPRODUCED]
    assert "430.8 here, at 52.45 in the paper" in entries[1]["reason"]
    assert "within 10% of 52.45" in entries[2]["rule"]


def test_a_model_that_kept_its_weights_says_so():
    one = claim("sign", paper=-0.1, measure="ftd-initial.ratio", cell="03#measures")
    none = {"value": 0.0, "low": 0.0, "high": 0.0, "basis": "b", "paper_size": True}
    (entry,) = claims.ledger({"c": one}, {"ftd-initial.ratio": none})
    assert (entry["verdict"], entry["reason"]) == (NOT_REPRODUCED, UNMOVED)


def test_perplexities_of_the_papers_own_text_are_never_judged():
    measures = load_measures(CHECKOUT / "figures/quick", load("quick"))
    found = {entry["claim"]: entry for entry in claims.ledger(DECLARED, measures)}
    for name in ("large_initial", "large_finetuned"):
        assert found[name]["verdict"] == NOT_RUN
        assert "not public" in found[name]["reason"]
    assert found["large_size"]["verdict"] == NOT_RUN


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ('name = "a", says = "x", measure = "m"', "cell that shows it"),
        ('name = "a", says = "x", limt = 2', "a: limt"),
        ('name = "a", says = "x"', "needs paper"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, entry, says):
    paper_number = "" if "needs" in says else "paper = 1.0\n"
    text = f'[[groups]]\nplace = "p"\nrule = "sign"\n{paper_number}claims = [{{ {entry} }}]\n'
    (tmp_path / "claims.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=says) as raised:
        claims.declared(tmp_path / "claims.toml")
    assert "\n" not in str(raised.value)
