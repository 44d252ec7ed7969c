"""The study of section 4 at its smallest, and Tables 2 and 3 made of it."""

import math

import pandas as pd
import pytest
import torch

from paperlib import paths, stages
from paperlib.checkpoints import CheckpointError
from paperlib.corpora import CorpusError
from paperlib.corpus_study import OPTIONS, CorpusStudy
from paperlib.losses import finetuning_loss
from paperlib.reporting import corpus_tables, measures, paper
from paperlib.settings import load


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    profile = load("smoke")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield {name: CorpusStudy(profile, name) for name in ("mos_ptb", "doc_ptb")}


def perplexity_word_by_word(model, tokens, eos):
    state, total, word = model.start(1), 0.0, eos
    device = model.embedding.device
    with torch.no_grad():
        for target in tokens.tolist():
            encoded, state = model.encode(torch.tensor([[word]], device=device), state)
            total -= model.log_q(encoded)[0, 0, target].item()
            word = target
    return math.exp(total / len(tokens))


@pytest.mark.slow
def test_perplexity_is_that_of_reading_word_by_word(studies):
    study = studies["doc_ptb"]
    measured = study.perplexities(study.initial)
    for split in ("valid", "test"):
        text = getattr(study.corpus, split)
        expected = perplexity_word_by_word(study.initial.model, text, study.corpus.eos)
        assert measured[split] == pytest.approx(expected, rel=1e-4)


def test_finetuning_starts_from_the_initial_model_and_leaves_it(studies):
    study = studies["doc_ptb"]
    before = {name: tensor.clone() for name, tensor in study.initial.model.state_dict().items()}
    start = study.initial.progress.best
    for option in OPTIONS:
        history = study.finetuned(option).history
        assert history[0]["perplexity"] == pytest.approx(start, rel=1e-5)
    for name, tensor in study.initial.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_discriminators_loss_is_that_of_its_training_with_an_interval(studies):
    study = studies["doc_ptb"]
    losses = study.discriminator_losses()
    assert losses.shape == study.corpus.valid.shape
    found = measures.of_discriminator(study)["doc_ptb.discriminator.below_log4"]
    best = study.discriminator.progress.best - math.log(4)
    assert found.value == pytest.approx(best, abs=1e-6)
    error = losses.std() / len(losses) ** 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.5)


def test_without_dropout_and_discriminator_nothing_moves(studies):
    """At t = 1 the derivative of eq. (12) is −1 + t (1 + log t) = 0, token by token."""
    log_q = torch.linspace(-20, -0.1, 50, dtype=torch.float64, requires_grad=True)
    loss = sum(finetuning_loss(log_q, log_q.detach(), torch.zeros_like(log_q)))
    (gradient,) = torch.autograd.grad(loss.sum(), log_q)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    study = studies["doc_ptb"]
    history = study.finetuned("no_discriminator").history
    for entry in history:
        assert entry["perplexity"] == pytest.approx(history[0]["perplexity"], rel=1e-4)
    assert corpus_tables.outcome(history) == "no change"


def test_dynamic_evaluation_takes_the_best_of_its_grid(studies):
    study = studies["mos_ptb"]
    result = study.dynamic(study.initial)
    assert len(result["grid"]) == len(study.settings.dynamic.grid())
    best = min(result["grid"], key=lambda entry: entry["perplexity"])
    assert result["best"] == {name: best[name] for name in result["best"]}
    assert studies["doc_ptb"].dynamic(study.initial) is None


def test_a_text_that_is_too_short_is_noticed_before_anything_is_trained(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a b c\n" * 3, encoding="utf-8")
    profile = load("smoke")
    own = profile.corpora["mos_ptb"].model_copy(update={"corpus": str(tmp_path)})
    profile = profile.model_copy(update={"corpora": {"mos_ptb": own}})
    with pytest.raises(CorpusError, match=r"the training text is too short: a text of 12 tokens"):
        CorpusStudy(profile, "mos_ptb")


def test_a_folder_in_a_profile_is_found_from_wherever_a_notebook_works(tmp_path, monkeypatch):
    for split in ("train", "valid", "test"):
        path = tmp_path / "my_texts" / f"{split}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("a b c\n" * 200, encoding="utf-8")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(paths, "PROJECT", tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    profile = load("smoke")
    for folder in ("my_texts", "./my_texts", "~/my_texts", str(tmp_path / "my_texts")):
        own = profile.corpora["mos_ptb"].model_copy(update={"corpus": folder})
        one = profile.model_copy(update={"corpora": {"mos_ptb": own}})
        assert CorpusStudy(one, "mos_ptb").corpus.title.startswith("my_texts, first ")


def test_what_was_measured_and_is_damaged_is_named(studies, tmp_path, monkeypatch):
    study = studies["doc_ptb"]
    study.token_log_probs(study.initial)
    monkeypatch.setattr(stages, "once", lambda *_: tmp_path)
    for name in ("log_q", "d"):
        (tmp_path / f"{name}.safetensors").write_bytes(b"not arrays")
    with pytest.raises(CheckpointError, match=r"log_q\.safetensors cannot be read"):
        study.token_log_probs(study.initial)
    with pytest.raises(CheckpointError, match=r"d\.safetensors cannot be read"):
        study.discriminator_losses()


def test_table_2_has_a_number_or_the_reason_in_every_cell(studies):
    study = studies["doc_ptb"]
    table = corpus_tables.table2(study).set_index("option")
    assert list(table.index) == list(paper.TABLE2)
    initial = study.finetuned().history[0]
    assert table.loc["initial", "valid_loss"] == pytest.approx(initial["loss"])
    for option in OPTIONS:
        run = study.finetuned(option)
        assert table.loc[option, "valid_ppl"] == pytest.approx(run.progress.best)
        entropy = math.log(table.loc[option, "valid_ppl"])
        total = entropy + table.loc[option, "reverse_kl"]
        assert table.loc[option, "valid_loss"] == pytest.approx(total, rel=1e-5)

    part = corpus_tables.table2(studies["mos_ptb"])  # runs one option only
    shown = corpus_tables.table2_for_people(part)
    not_run = part["valid_ppl"].isna()
    assert list(part[not_run]["option"]) == [name for name in OPTIONS if name != "discriminator"]
    assert (shown[not_run]["Test ppl."].str.startswith(corpus_tables.NOT_RUN)).all()
    assert shown.loc[1, "Test ppl."].endswith("(52.12)")


def test_table_3_has_all_rows_and_says_what_is_not_run(studies):
    table = corpus_tables.table3(studies).set_index("model")
    assert list(table.index) == list(paper.TABLE3)
    mos = studies["mos_ptb"]
    assert table.loc["mos_finetuned", "ptb_test"] == mos.perplexities(mos.finetuned())["test"]
    assert table.loc["mos_finetuned_dynamic", "ptb_valid"] == mos.dynamic(mos.finetuned())["valid"]
    assert table[["wikitext2_valid", "wikitext2_test"]].isna().all(axis=None)
    shown = corpus_tables.table3_for_people(
        table.reset_index(), corpus_tables.table3_titles(studies)
    )
    assert shown.loc[1, "WikiText-2, test"] == f"{corpus_tables.NOT_RUN} (61.90)"
    assert shown.loc[0, "Python's reference for Penn Treebank, test"] == "(54.44)"
    assert not (shown == "").any(axis=None)
    assert shown.loc[5, "Python's reference for Penn Treebank, valid"] == "–"
    status = table["ptb_status"], table["wikitext2_status"]
    assert status[0].tolist().count("measured") == 5
    assert status[0]["doc_original"] == status[1]["mos_original"] == "quoted"
    assert status[1]["doc_initial"] == corpus_tables.NOT_RUN


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(4, 50), (3.9, 49), (4.1, 51)], "both decrease"),
        ([(4, 50), (4.1, 51), (4.2, 52)], "both increase"),
        ([(4, 50), (4.1, 49)], "loss increases, perplexity decreases"),
        ([(4, 50), (3.9, 51)], "loss decreases, perplexity increases"),
        ([(4, 50), (4 + 1e-9, 51)], "loss stays, perplexity increases"),
        ([(4, 50), (4 + 1e-9, 50 - 1e-9)], "no change"),
    ],
)
def test_the_outcome_looks_at_loss_and_perplexity(values, expected):
    history = [{"loss": loss, "perplexity": perplexity} for loss, perplexity in values]
    assert corpus_tables.outcome(history) == expected


def test_the_papers_table_2_is_consistent_in_itself():
    """Validation loss = log perplexity + reverse KL, to the digits that the paper prints."""
    table = pd.DataFrame(paper.TABLE2).T.dropna(subset="valid_ppl")
    for _, row in table.iterrows():
        total = math.log(row["valid_ppl"]) + row["reverse_kl"]
        assert row["valid_loss"] == pytest.approx(total, abs=2e-4)
