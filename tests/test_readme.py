"""The README's and docs' numbers are those of the committed results; their links lead somewhere."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from paperlib.reporting import summary
from paperlib.reporting.claims import NOT_RUN, REPRODUCED
from paperlib.reporting.readme import BLOCK, refreshed, texts, verdicts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


TEXTS = pytest.mark.parametrize("path", texts(ROOT), ids=lambda path: path.name)


@TEXTS
def test_numbers_are_those_of_the_committed_results(path):
    text = path.read_text(encoding="utf-8")
    assert path.name == "cluster.md" or BLOCK.search(text)
    assert refreshed(text, ROOT) == text


@TEXTS
def test_links_lead_to_files_of_the_project(path):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8"))
    assert links or path.name == "cluster.md"
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_table_of_verdicts_is_that_of_the_ledgers():
    rows = [row.split("|")[1:-1] for row in verdicts(ROOT).splitlines()]
    assert len(rows) == 2 + len(summary.KEY_CLAIMS) + 2
    ledger = json.loads((ROOT / "figures/quick/claims.json").read_text(encoding="utf-8"))["claims"]
    [entry] = [entry for entry in ledger if entry["claim"] == "overestimates_frequent"]
    assert rows[2][1].strip() == entry["verdict"]
    judged = [one for one in ledger if not one["control"] and one["verdict"] != NOT_RUN]
    assert sum(map(int, rows[-2][1].split("/"))) == len(judged)
    constructed = [one for one in judged if one["constructed"] and one["verdict"] == REPRODUCED]
    assert int(rows[-1][1]) == len(constructed) > 0


def test_a_block_takes_the_files_text(tmp_path):
    (tmp_path / "t.md").write_text("new\n")
    text = "a\n<!-- from t.md -->\nold\n<!-- end -->\nb"
    assert refreshed(text, tmp_path) == "a\n<!-- from t.md -->\n\nnew\n\n<!-- end -->\nb"


def test_a_block_without_its_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        refreshed("<!-- from t.md -->\n<!-- end -->", tmp_path)


def test_the_lines_for_ones_own_model_run_as_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = random.Random(0).choices("abcde", k=600)
    lines = [" ".join(words[start : start + 8]) for start in range(0, 600, 8)]
    (tmp_path / "my_folder").mkdir()
    for name, part in (("train", lines[:50]), ("valid", lines[50:60]), ("test", lines[60:])):
        (tmp_path / f"my_folder/{name}.txt").write_text("\n".join(part) + "\n", encoding="utf-8")
    section = README.split("## On your own model")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    assert "max_epochs=20" in code
    n_words = 6  # the end of a line is a word too
    torch.manual_seed(0)
    network, another = (
        nn.Sequential(nn.Embedding(n_words, 4), nn.Linear(4, n_words)) for _ in range(2)
    )
    names = {"network": network, "another": another}
    exec(code.replace("max_epochs=20", "max_epochs=2"), names)
    before = names["q0"].network[1].weight
    assert not torch.equal(names["tuned"].network[1].weight, before)
    assert names["task"].validate()["perplexity"] < 8
