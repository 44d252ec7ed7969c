"""The README's numbers are those of the committed results, and its links lead somewhere."""

import re
from pathlib import Path

import pytest

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
