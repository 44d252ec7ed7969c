"""Table 1 as files: the contract's columns, twins, and the comparison with the paper."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paperlib.reporting import paper, tables
from paperlib.stages import Trained
from paperlib.training import Progress

COLUMNS = ["test_ppl", "freq_ppl", "rare_ppl", "ratio", "diff_mean", "diff_std"]


def seed_rows(shift=0.0):
    filled = {column: 0.0 for column in tables.TABLE1_COLUMNS}
    return {
        model: filled | {name: value + shift for name, value in row.items()}
        for model, row in paper.TABLE1.items()
    }


def test_columns_and_rows_of_the_contract(tmp_path):
    table = tables.table1([seed_rows()])
    tables.save_table(tmp_path, "table1", table, title="Table 1")
    read = pd.read_csv(tmp_path / "table1.csv")
    models = ["true", "initial", "initial_ftd", "perturbed", "perturbed_ftd"]
    assert read["model"].tolist() == models
    for column in COLUMNS:
        assert {column, f"paper_{column}"} <= set(read.columns)
    assert not any(column.endswith("_sd") for column in read.columns)
    assert np.isnan(read["paper_diff_mean"][0])
    assert (tmp_path / "table1.md").read_text(encoding="utf-8").startswith("**Table 1**")


def test_several_seeds_give_mean_and_sample_deviation():
    table = tables.table1([seed_rows(-1), seed_rows(0), seed_rows(4)])
    assert table["test_ppl"][1] == pytest.approx(84.89 + 1)
    assert table["test_ppl_sd"][1] == pytest.approx(np.std([-1, 0, 4], ddof=1))
    assert "85.89 ± 2.65 (84.89)" in tables.table1_for_people(table).iloc[1].tolist()


def test_differences_are_paired_by_seed_and_compared_with_the_paper():
    exact = tables.table1_differences([seed_rows(0), seed_rows(5)])
    row = exact[(exact["step"] == "initial → perturbed") & (exact["column"] == "test_ppl")].iloc[0]
    assert row["ours"] == pytest.approx(86.01 - 84.89)
    assert row["ours_sd"] == pytest.approx(0, abs=1e-9)
    assert row["agrees"] == "same sign, 1.0 × the paper's"
    verdicts = exact.set_index(["step", "column"])["agrees"]
    assert verdicts["initial → initial_ftd", "test_ppl"] == "too small in the paper to tell"

    unchanged = seed_rows()
    unchanged["perturbed_ftd"] = unchanged["perturbed"]
    verdicts = tables.table1_differences([unchanged]).set_index(["step", "column"])["agrees"]
    assert verdicts["perturbed → perturbed_ftd", "test_ppl"] == "no change here"

    against = seed_rows()
    against["perturbed_ftd"]["test_ppl"] = against["perturbed"]["test_ppl"] + 0.1
    verdicts = tables.table1_differences([against]).set_index(["step", "column"])["agrees"]
    assert verdicts["perturbed → perturbed_ftd", "test_ppl"] == "opposite sign"


def test_changes_on_validation_are_paired_by_seed():
    def run(*perplexities):
        history = [{"epoch": k, "perplexity": value} for k, value in enumerate(perplexities)]
        progress = Progress(1.0, best=min(perplexities), history=history)
        return Trained(None, progress, Path("unused"))

    runs = {"better": [run(80.0, 79.5, 79.0), run(90.0, 88.0, 89.0)], "worse": [run(80.0, 81.0)]}
    better, worse = tables.validation_changes(runs).to_dict("records")
    # Changes of −1 and −2; t of one degree of freedom at 97.5 % is 12.706.
    assert better["before"] == 85.0
    assert better["change"] == pytest.approx(-1.5)
    assert better["low"] == pytest.approx(-1.5 - 12.7062 * 0.5, rel=1e-4)
    assert (better["smallest"], better["largest"], better["seeds"]) == (-1.0, -2.0, 2)
    assert worse["change"] == 0
    assert np.isnan(worse["low"])


def test_rates_tried_say_which_is_the_profiles():
    progress = Progress(1.0, epoch=5, best=1.3, best_epoch=4)
    tried = {"discriminator": {rate: Trained(None, progress, Path()) for rate in (0.3, 1.0)}}
    table = tables.rates_tried(tried, {"discriminator": 1.0})
    assert table["the profile's"].tolist() == ["", "yes"]
    assert table.iloc[0, -3:].tolist() == [1.3, 4, 5]
    assert tables.rates_tried({}, {}).columns.tolist() == table.columns.tolist()
