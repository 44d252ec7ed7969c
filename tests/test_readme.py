"""The README's numbers are those of the committed results, and its links lead somewhere."""

import random
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from paperlib.reporting.readme import BLOCK, refreshed

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_are_those_of_the_committed_results():
    assert BLOCK.search(README)
    assert refreshed(README, ROOT) == README


def test_links_lead_to_files_of_the_project():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


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
