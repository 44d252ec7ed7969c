"""Section 4's trainings on running text, at their smallest, against direct computation."""

import copy

import numpy as np
import pytest
import torch
from conftest import needs_bfloat16, stops_after
from torch import nn

from paperlib import training
from paperlib.corpora import Corpus
from paperlib.losses import discriminator_loss, finetuning_loss
from paperlib.models import AWDLSTM
from paperlib.models.stream import FromLogits
from paperlib.network import Dropout, Network
from paperlib.remembered import Remembered
from paperlib.settings import StreamTraining
from paperlib.stream_tasks import DiscriminatorStreams, FinetuningStreams, LanguageModelStreams
from paperlib.streams import Piece
from paperlib.training import Trainer

WORDS = 13
DROPOUT = Dropout(embedding=0.1, input=0.2, hidden=0.1, output=0.2, latent=0.1, weight=0.3)
NETWORK = Network(
    head="doc",
    embedding=6,
    hidden=(7, 5),
    experts=(1, 2),
    dropout=DROPOUT,
    activation=0.5,
    temporal=0.5,
    balance=0.1,
)
TRAINING = StreamTraining(
    learning_rate=2.0, batch_size=4, bptt=8, bptt_excess=3, max_epochs=2, patience=5
)


def corpus():
    rng = np.random.default_rng(0)
    split = {name: rng.integers(WORDS, size=n) for name, n in (("train", 203), ("valid", 60))}
    words = (*(f"w{number}" for number in range(WORDS - 1)), "<eos>")
    return Corpus(
        name="tiny", title="Tiny", words=words, **split, test=split["valid"], checksums={}
    )


def network(seed=0, dtype=torch.float32, shape=NETWORK):
    return AWDLSTM(WORDS, shape, torch.Generator().manual_seed(seed)).to(dtype)


def language_model_task(settings=TRAINING):
    return LanguageModelStreams("test", network(), corpus(), settings, seed=7)


@pytest.mark.parametrize("steps", [0, 2, 5, 8])
def test_resumed_equals_uninterrupted_states_and_dropout_included(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
    whole = Trainer(language_model_task(), TRAINING, tmp_path / "whole.pt")
    expected = whole.run()
    task = stops_after(language_model_task(), steps)
    with pytest.raises(KeyboardInterrupt):
        Trainer(task, TRAINING, tmp_path / "parts.pt").run()
    resumed = Trainer(language_model_task(), TRAINING, tmp_path / "parts.pt")
    assert resumed.run().history == expected.history
    for mine, theirs in zip(
        resumed.task.model.parameters(), whole.task.model.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def gradients(task, pieces):
    for piece in pieces:
        task.model.zero_grad()
        measured = task.backward(piece)
    return measured, [parameter.grad.clone() for parameter in task.model.parameters()]


def test_groups_of_streams_add_up_to_the_batch():
    """Small-batch accumulation: without regularisation, nothing may depend on the groups."""
    pieces = [Piece(0, 9), Piece(9, 7)]
    results = []
    for parts in (1, 3):
        settings = TRAINING.model_copy(update={"parts": parts, "regularised": False})
        task = LanguageModelStreams("t", network(dtype=torch.float64), corpus(), settings, seed=0)
        results.append(gradients(task, pieces))
    (one, ones), (three, threes) = results
    assert one["loss"].item() == pytest.approx(three["loss"].item(), rel=1e-12)
    for mine, theirs in zip(ones, threes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_cross_entropy_with_the_state_carried():
    settings = TRAINING.model_copy(update={"regularised": False})
    model = network(dtype=torch.float64)
    task = LanguageModelStreams("t", model, corpus(), settings, seed=0)
    _, found = gradients(task, [Piece(0, 9), Piece(9, 7)])
    with torch.no_grad():
        _, state = model.encode(task.train[:9], model.start(4))
    encoded, _ = model.encode(task.train[9:16], state)
    log_q = model.log_q(encoded).gather(-1, task.train[10:17].unsqueeze(-1))
    expected = torch.autograd.grad(-log_q.mean(), list(model.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_regularisation_is_in_the_gradient_but_not_in_the_loss_that_is_reported():
    plain, regularised = (
        gradients(
            LanguageModelStreams("t", network(shape=shape), corpus(), TRAINING, 0), [Piece(0, 9)]
        )
        for shape in (
            NETWORK.model_copy(update={"activation": 0.0, "temporal": 0.0, "balance": 0.0}),
            NETWORK,
        )
    )
    assert plain[0]["loss"].item() == pytest.approx(regularised[0]["loss"].item(), rel=1e-6)
    assert any(
        not torch.allclose(mine, theirs)
        for mine, theirs in zip(plain[1], regularised[1], strict=True)
    )


@needs_bfloat16
def test_mixed_precision_is_close_to_float32_and_log_q_is_not_rounded():
    results = []
    for precision in ("float32", "mixed"):
        settings = TRAINING.model_copy(update={"precision": precision})
        task = LanguageModelStreams("t", network(), corpus(), settings, seed=0)
        measured, found = gradients(task, [Piece(0, 9)])
        assert all(gradient.dtype == torch.float32 for gradient in found)
        results.append((measured["loss"].item(), torch.cat([g.flatten() for g in found])))
    (exact, gradient), (rounded, other) = results
    assert rounded == pytest.approx(exact, rel=1e-3)
    assert torch.tensor(rounded, dtype=torch.bfloat16).item() != rounded
    assert torch.cosine_similarity(gradient, other, dim=0) > 0.999


def test_the_rate_of_a_piece_is_in_proportion_to_its_length():
    task = language_model_task()
    assert task.rate(Piece(0, 4)) == pytest.approx(0.5)
    assert task.tokens(Piece(0, 4)) == 16


def test_the_discriminators_validation_is_equation_6_over_all_tokens():
    q0, r = network(seed=1, dtype=torch.float64), network(seed=2, dtype=torch.float64)
    task = DiscriminatorStreams("t", r, corpus(), TRAINING, 0, q0=q0)
    text = torch.from_numpy(corpus().valid)
    history = torch.cat([torch.tensor([corpus().eos]), text])[:-1, None]
    with torch.no_grad():
        log_q0 = q0.log_q(q0.encode(history, q0.start(1))[0])
        log_r = r.log_r(r.encode(history, r.start(1))[0])
        expected = [
            part.mean().item() for part in discriminator_loss(log_q0, *log_r, text[:, None])
        ]
    measured = task.validate()
    # Streams of a text as short as this start from half of the history.
    assert [measured["d_q"], measured["d_p"]] == pytest.approx(expected, rel=1e-3)
    assert measured["d"] == pytest.approx(measured["d_q"] + measured["d_p"])


def test_cached_frozen_numbers_equal_recomputing_both_frozen_models():
    """q_0 and r enter eq. (12) only at the true next word."""
    q0, r = network(seed=1, dtype=torch.float64), network(seed=2, dtype=torch.float64)
    settings = TRAINING.model_copy(update={"regularised": False})
    model = network(seed=3, dtype=torch.float64)
    task = FinetuningStreams("t", model, corpus(), settings, 0, q0=q0, discriminator=r)
    measured, found = gradients(task, [Piece(0, 9), Piece(9, 7)])

    states = [network.start(4) for network in (q0, r, model)]
    for start, until in ((0, 9), (9, 16)):
        codes = []
        for number, frozen in enumerate((q0, r, model)):
            code, states[number] = frozen.encode(task.train[start:until], states[number])
            codes.append(code)
    target = task.train[10:17]
    with torch.no_grad():
        log_q0 = q0.log_q(codes[0]).gather(-1, target[..., None])[..., 0]
        log_r, log_not_r = r.log_r(codes[1])
        log_odds = (log_r - log_not_r).gather(-1, target[..., None])[..., 0]
    parts = finetuning_loss(model.log_q_of(codes[2], target), log_q0, log_odds)
    loss = sum(part.mean() for part in parts)
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert measured["loss"].item() == pytest.approx(loss.item(), rel=1e-9)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


def test_finetunings_of_one_study_share_what_the_frozen_models_say():
    """As it would be read anew: with and without discriminator, and in other streams too."""
    q0, r, other_r = (network(seed=seed) for seed in (1, 2, 4))
    remembered, made = Remembered(), []

    def once(key, make):
        return remembered(key, lambda: made.append(key) or make())

    def task(discriminator, batch_size, **options):
        settings = TRAINING.model_copy(update={"regularised": False, "batch_size": batch_size})
        models = {"q0": q0, "discriminator": discriminator}
        task = FinetuningStreams("t", network(3), corpus(), settings, 0, **models, **options)
        task.batches(0, batch_size)
        return task

    for of in [(r, 4), (None, 4), (r, 3), (other_r, 4), (r, 4)]:
        shared, alone = task(*of, once=once), task(*of)
        for mine, anew in zip(shared._cached, alone._cached, strict=True):
            torch.testing.assert_close(mine, anew, rtol=0, atol=0)
        assert shared.validate() == alone.validate()
    # q_0 on the validation text and on two cuts into streams; r likewise; the other r on one cut.
    assert len(made) == 3 + 3 + 2


class Own(nn.Module):
    """A user's network: what it has read of a piece makes its logits; with dropout of its own."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 8)
        self.dropout = nn.Dropout(0.5)
        self.output = nn.Linear(8, WORDS)

    def forward(self, words):
        read = self.embedding(words).cumsum(dim=0)
        return self.output(self.dropout(read))


def own_network(seed=0):
    torch.manual_seed(seed)
    return FromLogits(Own(), piece=TRAINING.bptt)


def test_frozen_models_are_frozen_whatever_mode_they_come_in():
    q0, r = own_network(0), own_network(1)
    settings = TRAINING.model_copy(update={"regularised": False})
    tuned = copy.deepcopy(q0).eval()
    task = FinetuningStreams("t", tuned, corpus(), settings, 0, q0=q0, discriminator=None)
    assert task.validate()["largest_t"] == pytest.approx(1, abs=1e-5)
    task = DiscriminatorStreams("t", r, corpus(), settings, 0, q0=q0.train())
    r.eval()
    assert task.validate() == task.validate()


def test_a_users_network_starts_finetuning_at_the_same_contexts_as_the_frozen_one():
    """With r ≡ ½, t is 1 at every token, and the derivative of eq. (12) is exactly zero there."""
    q0 = own_network().double()
    settings = TRAINING.model_copy(update={"regularised": False})
    tuned = copy.deepcopy(q0)
    task = FinetuningStreams("t", tuned, corpus(), settings, 0, q0=q0, discriminator=None)
    pieces = task.batches(0, settings.batch_size)
    assert {piece.length for piece in pieces[:-1]} == {TRAINING.bptt}
    for piece in pieces:
        measured, found = gradients(task, [piece])
        assert measured["reverse_kl"].item() == pytest.approx(0, abs=1e-12)
        for gradient in found:
            torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


@pytest.mark.parametrize("regularised", [False, True])
def test_a_users_network_has_its_dropout_exactly_in_regularised_training(regularised):
    settings = TRAINING.model_copy(update={"regularised": regularised})
    task = LanguageModelStreams("t", own_network().train(), corpus(), settings, seed=0)
    first, second = (gradients(task, [Piece(0, 8)])[0]["loss"].item() for _ in range(2))
    assert (first != second) == regularised


@pytest.mark.parametrize("steps", [2, 8])
def test_a_users_network_resumes_with_its_dropout(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
    whole = Trainer(
        LanguageModelStreams("t", own_network(), corpus(), TRAINING, 7), TRAINING, tmp_path / "a"
    ).run()
    task = LanguageModelStreams("t", own_network(), corpus(), TRAINING, 7)
    with pytest.raises(KeyboardInterrupt):
        Trainer(stops_after(task, steps), TRAINING, tmp_path / "b").run()
    torch.rand(3)  # what others draw in between
    task = LanguageModelStreams("t", own_network(), corpus(), TRAINING, 7)
    assert Trainer(task, TRAINING, tmp_path / "b").run().history == whole.history


def test_a_users_network_is_trained_on_the_pieces_that_it_reads():
    other = TRAINING.model_copy(update={"bptt": 9})
    with pytest.raises(training.TrainingError, match=r"pieces of 8 words; set `bptt = 8`"):
        LanguageModelStreams("t", own_network(), corpus(), other, seed=0)


def test_a_frozen_model_sets_the_pieces_too():
    settings = TRAINING.model_copy(update={"regularised": False})
    task = DiscriminatorStreams("t", network(), corpus(), settings, 0, q0=own_network())
    assert {piece.length for piece in task.batches(0, 4)[:-1]} == {TRAINING.bptt}
    other = FromLogits(Own(), piece=5)
    with pytest.raises(ValueError, match="pieces of 5 words, another of 8"):
        FinetuningStreams(
            "t", own_network(), corpus(), settings, 0, q0=own_network(), discriminator=other
        )


def test_without_a_discriminator_finetuning_starts_at_zero_divergence():
    q0 = network(seed=1)
    same = copy.deepcopy(q0)
    task = FinetuningStreams("t", same, corpus(), TRAINING, 0, q0=q0, discriminator=None)
    measured = task.validate()
    assert measured["reverse_kl"] == pytest.approx(0, abs=1e-6)
    assert measured["loss"] == pytest.approx(np.log(measured["perplexity"]), rel=1e-6)
