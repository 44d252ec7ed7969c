"""The study of section 4 at its smallest, and Tables 2 and 3 made of it."""

import copy
import math

import pandas as pd
import pytest
import torch

from paperlib import paths, stages
from paperlib.checkpoints import CheckpointError
from paperlib.corpora import CorpusError
from paperlib.corpus_study import DYNAMIC_LOG_Q, OPTIONS, CorpusStudy
from paperlib.estimates import ONE_RUN, Estimate, error_of_mean
from paperlib.evaluation import perplexity
from paperlib.losses import finetuning_loss
from paperlib.reporting import corpus_tables, dynamic_measures, measures, paper
from paperlib.settings import load
from paperlib.stream_tasks import LanguageModelStreams
from paperlib.training import Trainer


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


def test_cross_entropy_alone_is_fine_tuning_without_its_second_term(studies):
    """By hand: SGD with clipping, from the initial weights, on the same pieces of text."""
    study = studies["doc_ptb"]
    run, own = study.cross_entropy, study.settings.finetuning
    assert run.folder.parent.name == "corpus_cross_entropy"
    assert run.history[0]["perplexity"] == pytest.approx(study.initial.progress.best, rel=1e-5)
    training = own.model_copy(update={"max_epochs": 1})
    model = copy.deepcopy(study.initial.model)
    task = LanguageModelStreams("t", model, study.text, training, study.seed)
    state = model.start(own.batch_size)
    for piece in task.batches(0, own.batch_size):
        words = task.train[piece.start : piece.start + piece.length + 1]
        encoded, state = model.encode(words[:-1], state)
        model.zero_grad()
        (-model.log_q_of(encoded, words[1:]).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), own.clip)
        with torch.no_grad():
            for weights in model.parameters():
                weights -= own.learning_rate * piece.length / own.bptt * weights.grad
    assert run.history[1]["perplexity"] == pytest.approx(task.validate()["perplexity"], rel=1e-4)


def test_the_control_with_dropout_is_the_training_that_goes_on(studies, tmp_path):
    study = studies["doc_ptb"]
    run, own = study.cross_entropy_dropout, study.settings.finetuning
    training = own.model_copy(update={"max_epochs": 1, "regularised": True})
    model = copy.deepcopy(study.initial.model)
    task = LanguageModelStreams("t", model, study.text, training, study.seed)
    progress = Trainer(task, training, tmp_path / "checkpoint").run()
    assert run.history[1]["perplexity"] == progress.history[1]["perplexity"]
    assert run.history[1]["train_loss"] > study.cross_entropy.history[1]["train_loss"]


def test_the_control_is_run_where_the_profile_has_it_and_no_row_of_table_2(studies):
    study, part = studies["doc_ptb"], studies["mos_ptb"]
    assert dict(study.trainings())["finetuning_cross_entropy"].folder == study.cross_entropy.folder
    dropout = dict(study.trainings())["finetuning_cross_entropy_dropout"]
    assert dropout.folder == study.cross_entropy_dropout.folder
    assert not any("cross_entropy" in name for name, _ in part.trainings())
    assert "cross_entropy" not in set(corpus_tables.table2(study)["option"])
    table = corpus_tables.control(studies.values()).set_index("option")
    assert set(table["network"]) == {"doc_ptb"}
    controls = ["cross_entropy", "cross_entropy_dropout"]
    assert list(table.index) == ["initial", "discriminator", *controls]
    assert table.loc["initial", "valid_change"] == 0
    for control in controls:
        for split, value in study.perplexities(getattr(study, control)).items():
            assert table.loc[control, f"{split}_ppl"] == value
    shown = corpus_tables.control_for_people(table.reset_index())
    assert shown.loc[2, "Fine-tuning option"].endswith("(our control)")

    both = corpus_tables.control([study, part, study])  # a network after the other
    assert list(both["option"]) == [*table.index, *table.index]
    none = corpus_tables.control([part])
    assert none.empty
    shown = corpus_tables.control_for_people(none)
    assert (shown == corpus_tables.NOT_RUN).all(axis=None)


def test_what_is_the_discriminators_has_an_interval_and_a_sentence(studies):
    study = studies["doc_ptb"]
    found = measures.of_text(study)
    more = found["doc_ptb.cross_entropy-discriminator.test_ppl"]
    levels = [
        found[f"doc_ptb.{name}.test_ppl"].value for name in ("cross_entropy", "discriminator")
    ]
    assert more.value == pytest.approx(levels[0] - levels[1])
    assert more.low < more.value < more.high
    said = list(corpus_tables.control_answer("doc_ptb", found))
    assert [sentence.split()[:2] for sentence in said] == 2 * [
        ["doc_ptb:", "validation"],
        ["doc_ptb:", "test"],
    ]
    assert ["with dropout" in sentence for sentence in said] == [False, False, True, True]
    assert f"{more.value:+.2f} points ({more.low:+.2f} to {more.high:+.2f})" in said[1]

    found = measures.of_text(studies["mos_ptb"])
    (said,) = corpus_tables.control_answer("mos_ptb", found)
    assert said == "mos_ptb: cross-entropy alone is not run."


@pytest.mark.parametrize(
    ("ends", "says"),
    [((0.5, 1.5), "ends higher than"), ((-1.5, -0.5), "ends lower than"), ((-1, 1), "cannot tell")],
)
def test_the_sentence_about_the_control_follows_from_the_interval(ends, says):
    change = Estimate(-2.0, -3.0, -1.0, "b")
    found = {
        f"a.{step}.{split}_ppl": estimate
        for split in ("valid", "test")
        for step, estimate in {
            "cross_entropy-discriminator": Estimate(sum(ends) / 2, *ends, "b"),
            "cross_entropy_dropout-discriminator": Estimate(sum(ends) / 2, *ends, "b"),
            "discriminator-initial": change,
            "cross_entropy-initial": change,
            "cross_entropy_dropout-initial": change,
        }.items()
    }
    assert all(says in sentence for sentence in corpus_tables.control_answer("a", found))


def test_what_fine_tuning_minimises_has_intervals_over_stretches(studies):
    study = studies["doc_ptb"]
    found = measures.of_finetuning(study)
    for option in OPTIONS:
        run = study.finetuned(option)
        before, best = run.history[0], run.history[run.progress.best_epoch]
        for name in ("loss", "reverse_kl"):
            level = found[f"doc_ptb.{option}.{name}"]
            change = found[f"doc_ptb.{option}.{name}_change"]
            assert level.value == pytest.approx(best[name], rel=1e-5, abs=1e-6)
            assert change.value == pytest.approx(best[name] - before[name], rel=1e-3, abs=1e-6)
            assert level.low <= level.value <= level.high
    (_, kl), (_, start) = (study.valid_parts(one) for one in (study.finetuned(), study.initial))
    change = found["doc_ptb.discriminator.reverse_kl_change"]
    error = (kl - start).std() / len(kl) ** 0.5
    assert change.high - change.low == pytest.approx(2 * 1.96 * error, rel=0.5)
    assert found["doc_ptb.initial.loss"].value == pytest.approx(
        study.finetuned().history[0]["loss"], rel=1e-5
    )


def test_validation_tells_the_error_of_a_change_without_its_weights(studies):
    study = studies["doc_ptb"]
    run = study.finetuned()
    assert run.history[0]["loss_error"] == pytest.approx(0, abs=1e-6)
    (ce, kl), (ce0, kl0) = (study.valid_parts(one) for one in (run, study.initial))
    best = run.history[run.progress.best_epoch]
    for name, change in (("cross_entropy", ce - ce0), ("loss", ce + kl - ce0 - kl0)):
        assert best[f"{name}_error"] == pytest.approx(error_of_mean(change), rel=1e-3)


def test_dynamic_evaluation_keeps_its_tokens(studies):
    study = studies["mos_ptb"]
    for trained in (study.initial, study.finetuned()):
        result, tokens = study.dynamic(trained), study.dynamic_log_probs(trained)
        for split in ("valid", "test"):
            assert tokens[split].shape == getattr(study.corpus, split).shape
            assert perplexity(tokens[split]) == pytest.approx(result[split], rel=1e-12)
    found = dynamic_measures.of_dynamic(study)
    change = found["mos_ptb.finetuned_dynamic-finetuned.test_ppl"]
    assert change.low < change.value < change.high
    assert studies["doc_ptb"].dynamic_log_probs(study.initial) is None

    kept = study._dynamic_folder(study.initial) / DYNAMIC_LOG_Q
    moved = kept.rename(kept.with_suffix(".away"))
    assert study.dynamic_log_probs(study.initial) is None  # as an earlier version left it
    change = dynamic_measures.of_dynamic(study)["mos_ptb.finetuned_dynamic-finetuned.test_ppl"]
    assert change.basis == ONE_RUN
    moved.rename(kept)


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
    study.discriminator_losses()
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
