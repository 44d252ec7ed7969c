"""The study of section 3 at its smallest: what must hold at any size, against direct sums."""

import numpy as np
import pytest
import torch

from paperlib.losses import discriminator_loss, finetuning_loss
from paperlib.models.readings import log_q, log_r
from paperlib.settings import load
from paperlib.synthetic import SyntheticStudy
from paperlib.tasks import DiscriminatorTask, FinetuningTask


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield SyntheticStudy(load("smoke").synthetic, seed=0)


def test_sentences_are_the_languages_words_as_ids(study):
    ids = study.sentences("valid")
    assert ids.min() >= 0
    assert ids.max() < study.language.n_words
    assert not np.array_equal(ids, study.sentences("test")[: len(ids)])
    np.testing.assert_array_equal(ids, study.sentences("valid"))


def test_the_log_probability_of_a_sentence_is_a_product_of_next_word_probabilities(study):
    sentence = study.test[0] + 1
    history = [0, 0, *sentence]
    for position, word in enumerate(sentence):
        probabilities = study.language.next_word_probs(history[position], history[position + 1])
        expected = np.log(probabilities[word - 1])
        assert study.test_log_p[0, position] == pytest.approx(expected)


def test_the_perturbed_models_chosen_word_is_as_rare_as_asked(study):
    words = study.split.valid
    probability = study.perturbed(words).softmax(-1)[..., study.chosen].mean().item()
    assert probability == pytest.approx(study.settings.perturbation.probability, rel=1e-3)
    assert study.chosen in study.classes.almost_frequent


def test_the_discriminators_validation_is_equation_6_over_all_tokens(study):
    discriminator = study.discriminator("perturbed")
    task = DiscriminatorTask("t", discriminator.model, study.split, seed=0, q0=study.perturbed)
    words = study.split.valid
    with torch.no_grad():
        logits = discriminator.model(words)
        d_q, d_p = discriminator_loss(log_q(study.perturbed(words)), *log_r(logits), words)
        measured = task.validate()
    assert measured["d_q"] == pytest.approx(d_q.mean().item(), rel=1e-5)
    assert measured["d_p"] == pytest.approx(d_p.mean().item(), rel=1e-5)
    assert measured["d"] == pytest.approx(discriminator.progress.best, rel=1e-5)


def test_the_frozen_numbers_of_finetuning_equal_recomputing_them(study):
    """Section 2.2 with caching against the same loss with both frozen models evaluated anew."""
    discriminator, start = study.discriminator("perturbed").model, study.start("perturbed")
    model = study.finetuned("perturbed").model
    task = FinetuningTask("t", model, study.split, seed=0, q0=start, discriminator=discriminator)
    batch = task.batches(epoch=1, size=32)[0]
    words = study.split.train[batch]
    with torch.no_grad():
        at = words.unsqueeze(-1)
        log_odds = discriminator(words).gather(-1, at)[..., 0]
        log_q0 = log_q(start(words)).gather(-1, at)[..., 0]
        log_q_true = log_q(model(words)).gather(-1, at)[..., 0]
        expected = sum(part.mean() for part in finetuning_loss(log_q_true, log_q0, log_odds))
        assert sum(task.parts(batch).values()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_finetuning_without_a_discriminator_starts_at_zero_divergence(study):
    start = study.start("initial")
    task = FinetuningTask("t", start, study.split, seed=0, q0=start, discriminator=None)
    assert task.validate()["reverse_kl"] == pytest.approx(0, abs=1e-9)


def test_finetuning_leaves_the_model_that_it_starts_from(study):
    before = {name: tensor.clone() for name, tensor in study.perturbed.state_dict().items()}
    study.finetuned("perturbed")
    for name, tensor in study.perturbed.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_curves_record_every_step_from_the_start(study):
    curve = study.settings.curves[0]
    run = study.curve(curve)
    batches = -(-study.settings.sentences.train // study.settings.finetuning.batch_size)
    assert np.array(run.progress.probes).shape == (1 + batches * curve.epochs, 3)
    np.testing.assert_allclose(run.progress.probes[0], study.probe_lines()["q0"], rtol=1e-4)


def test_the_probes_contexts_are_real_and_followed_by_their_words(study):
    sentences, positions = study.probe.sentences.cpu().numpy(), study.probe.positions.tolist()
    valid = {tuple(row) for row in study.split.valid.tolist()}
    for row, position, word in zip(
        sentences, positions, study.probed_words().values(), strict=True
    ):
        assert tuple(row.tolist()) in valid
        assert row[position] == word
        assert position >= 2


def test_table_1_has_the_true_distribution_as_its_best_row(study):
    rows = study.table1()
    assert list(rows) == ["true", "initial", "initial_ftd", "perturbed", "perturbed_ftd"]
    assert rows["true"]["diff_mean"] == rows["true"]["diff_std"] == 0
    assert min(rows, key=lambda name: rows[name]["test_ppl"]) == "true"
    assert rows["perturbed"]["test_ppl"] > rows["initial"]["test_ppl"]
    # What the chosen word lost is shared by the others, which therefore gain a little.
    gain = rows["initial"]["other_ppl"] / rows["perturbed"]["other_ppl"]
    assert 1 < gain < 1 + 2 * study.settings.perturbation.frequency
