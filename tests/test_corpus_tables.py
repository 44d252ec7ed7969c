"""The table of dynamic evaluation, from studies whose results are known without training."""

from types import SimpleNamespace

import pandas as pd
import pytest

from paperlib.reporting import corpus_tables
from paperlib.reporting.tables import save_table

STATIC = {"initial": {"valid": 60.0, "test": 58.0}, "fine-tuned": {"valid": 59.0, "test": 57.5}}
DYNAMIC = {"initial": {"valid": 50.0, "test": 48.0}, "fine-tuned": {"valid": 49.5, "test": 47.25}}
BEST = {
    "initial": {"learning_rate": 0.002, "decay": 0.02},
    "fine-tuned": {"learning_rate": 0.001, "decay": 0.005},
}


def fake_study(searches: bool):
    """A study that knows its perplexities; without a search it must not be asked for dynamic ones.

    Its models are their own names.
    """

    def dynamic(model: str) -> dict:
        assert searches
        return DYNAMIC[model] | {"best": BEST[model], "grid": [BEST[model]]}

    return SimpleNamespace(
        settings=SimpleNamespace(dynamic=SimpleNamespace() if searches else None),
        initial="initial",
        finetuned=lambda: "fine-tuned",
        perplexities=STATIC.__getitem__,
        dynamic=dynamic,
    )


def test_dynamic_evaluation_stands_beside_static_before_and_after_finetuning():
    studies = {"doc_ptb": fake_study(searches=False), "mos_ptb": fake_study(searches=True)}
    table = corpus_tables.dynamic_evaluation(studies)
    assert table.values.tolist() == [
        ["mos_ptb, initial", "valid", 60.0, 50.0, 0.002, 0.02],
        ["mos_ptb, initial", "test", 58.0, 48.0, 0.002, 0.02],
        ["mos_ptb, fine-tuned", "valid", 59.0, 49.5, 0.001, 0.005],
        ["mos_ptb, fine-tuned", "test", 57.5, 47.25, 0.001, 0.005],
    ]
    pd.testing.assert_frame_equal(corpus_tables.dynamic_for_people(table), table)


@pytest.mark.parametrize("studies", [{}, {"doc_ptb": fake_study(searches=False)}])
def test_without_dynamic_evaluation_its_table_says_so(studies, tmp_path):
    table = corpus_tables.dynamic_evaluation(studies)
    assert table.empty
    shown = corpus_tables.dynamic_for_people(table)
    assert (shown == corpus_tables.NOT_RUN).all(axis=None)
    save_table(tmp_path, "dynamic_evaluation", table, title="Dynamic evaluation", shown=shown)
    read = pd.read_csv(tmp_path / "dynamic_evaluation.csv")
    assert tuple(read.columns) == corpus_tables.DYNAMIC_COLUMNS
    assert corpus_tables.NOT_RUN in (tmp_path / "dynamic_evaluation.md").read_text(encoding="utf-8")


def study_of(name, title, corpus="ptb"):
    return SimpleNamespace(name=name, corpus=SimpleNamespace(title=title, name=corpus))


def test_texts_are_named_once_or_with_the_experiments_they_are_of():
    mos, doc = study_of("mos_ptb", "Penn"), study_of("doc_ptb", "Penn")
    other = study_of("mos_wikitext2", "Wiki", "wikitext2")
    assert corpus_tables.texts_of([mos, doc]) == "Penn"
    assert corpus_tables.texts_of([other, mos, doc]) == "Penn; Wiki"
    part = study_of("doc_ptb", "Penn, first 9")
    expected = "Penn (mos_ptb); Penn, first 9 (doc_ptb); Wiki (mos_wikitext2)"
    assert corpus_tables.texts_of([mos, part, other]) == expected
