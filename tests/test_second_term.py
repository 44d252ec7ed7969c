"""Variants of the second term of eq. (9) on running text, against sums word by word in float64."""

import math

import pytest
import torch
from test_stream_tasks import TRAINING, corpus, gradients, network, own_network

from paperlib import training
from paperlib.losses import finetuning_loss
from paperlib.settings import SecondTerm
from paperlib.stream_tasks import FinetuningStreams
from paperlib.streams import Piece
from paperlib.training import Trainer

PLAIN = TRAINING.model_copy(update={"regularised": False})
PIECES = [Piece(0, 9), Piece(9, 7)]
TERMS = [
    SecondTerm(),
    SecondTerm(weight=0.3),
    SecondTerm(largest_t=1.02),
    SecondTerm(normalised=True),
    SecondTerm(estimate="sum"),
    SecondTerm(estimate="sum", normalised=True, weight=2.0),
    SecondTerm(weight=0),
]


def task_of(term, discriminator=True, settings=PLAIN, dtype=torch.float64, **options):
    """Fine-tuning of a tiny network that has already left q_0."""
    models = [network(seed=seed, dtype=dtype) for seed in (1, 2, 3)]
    q0, r, model = models
    term = {} if term is None else {"second_term": term}
    r = r if discriminator else None
    task = FinetuningStreams("t", model, corpus(), settings, 0, q0=q0, discriminator=r, **term)
    return task, models


def slow_terms(log_q, log_q0, log_r, target, term):
    """The two parts of the objective at one token, from ``(V,)`` distributions."""
    log_p_hat = [
        (q + math.log1p(-math.exp(r)) - r).item() for q, r in zip(log_q0, log_r, strict=True)
    ]
    if term.normalised:
        total = math.log(sum(math.exp(value) for value in log_p_hat))
        log_p_hat = [value - total for value in log_p_hat]
    if term.estimate == "sum":
        words = range(len(log_p_hat))
        second = sum(log_q[w].exp() * (log_q[w] - log_p_hat[w]) for w in words)
    else:
        log_t = log_q[target] - log_p_hat[target]
        if term.largest_t is not None and log_t > math.log(term.largest_t):
            log_t = torch.tensor(math.log(term.largest_t), dtype=torch.float64)
        second = log_t.exp() * log_t
    return -log_q[target], term.weight * second


@pytest.mark.parametrize("discriminator", [True, False])
@pytest.mark.parametrize("term", TERMS, ids=str)
def test_gradients_and_parts_are_those_of_sums_word_by_word(term, discriminator):
    """In the second piece, so that all models have to come with their states."""
    task, models = task_of(term, discriminator)
    measured, found = gradients(task, PIECES)

    states, parts = [one.start(4) for one in models], []
    for piece in PIECES:
        words = task.train[piece.start : piece.start + piece.length + 1]
        codes = []
        for number, one in enumerate(models):
            code, states[number] = one.encode(words[:-1], states[number])
            codes.append(code)
    q0, r, model = models
    log_q = model.log_q(codes[2])
    with torch.no_grad():
        log_q0, (log_r, _) = q0.log_q(codes[0]), r.log_r(codes[1])
    if not discriminator:
        log_r = torch.full_like(log_r, math.log(0.5))
    for step in range(piece.length):
        for stream in range(4):
            at = step, stream
            parts.append(
                slow_terms(log_q[at], log_q0[at], log_r[at], words[step + 1, stream].item(), term)
            )
    expected = [sum(values) / len(parts) for values in zip(*parts, strict=True)]
    names = ("cross_entropy", "reverse_kl")
    assert [measured[name].item() for name in names] == pytest.approx(
        [value.item() for value in expected], rel=1e-9, abs=1e-12
    )
    slow = torch.autograd.grad(sum(expected), list(model.parameters()))
    for mine, theirs in zip(found, slow, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-8, atol=1e-11)


def test_a_limit_on_t_changes_something_here():
    (_, plain), (_, limited) = (
        gradients(task_of(term)[0], PIECES) for term in (None, SecondTerm(largest_t=1.02))
    )
    assert any(
        not torch.allclose(mine, theirs) for mine, theirs in zip(plain, limited, strict=True)
    )


class AsBefore(FinetuningStreams):
    """Eq. (12) written out from the frozen numbers, without any option."""

    def parts(self, encoded, target, log_q0, log_odds):
        log_q = self.model.log_q_of(encoded["model"], target)
        cross_entropy, reverse_kl = finetuning_loss(log_q, log_q0, log_odds)
        return {"cross_entropy": cross_entropy.mean(), "reverse_kl": reverse_kl.mean()}


def test_the_default_is_the_papers_term_bit_for_bit():
    results = []
    for kind, term in (
        (AsBefore, {}),
        (FinetuningStreams, {}),
        (FinetuningStreams, {"second_term": SecondTerm()}),
    ):
        models = [network(seed=seed) for seed in (1, 2, 3)]
        q0, r, model = models
        task = kind("t", model, corpus(), TRAINING, 0, q0=q0, discriminator=r, **term)
        results.append((gradients(task, PIECES), task.validate()))
    (expected, found), validated = results[0]
    for (measured, gradient), again in results[1:]:
        assert measured == expected
        assert again == validated
        assert all(map(torch.equal, gradient, found))


def test_validation_is_equation_12_whatever_is_trained():
    validated = [
        task_of(term)[0].validate()
        for term in (None, SecondTerm(weight=3.0, largest_t=1.01), SecondTerm(estimate="sum"))
    ]
    for one in validated[1:]:
        assert one == pytest.approx(validated[0], rel=1e-9)
    normalised = task_of(SecondTerm(normalised=True))[0].validate()
    assert normalised["perplexity"] == pytest.approx(validated[0]["perplexity"], rel=1e-9)
    assert normalised["loss"] != pytest.approx(validated[0]["loss"], rel=1e-4)


def test_groups_of_streams_add_up_with_the_frozen_models_states():
    settings = PLAIN.model_copy(update={"parts": 3})
    one, three = (
        gradients(task_of(SecondTerm(estimate="sum"), settings=setting)[0], PIECES)
        for setting in (PLAIN, settings)
    )
    for mine, theirs in zip(one[1], three[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


class Interrupted(FinetuningStreams):
    """Raises as Ctrl-C does, before the fourth step."""

    steps_left = 3

    def backward(self, batch):
        self.steps_left -= 1
        if self.steps_left < 0:
            raise KeyboardInterrupt
        return super().backward(batch)


def test_the_exact_sum_resumes_with_the_states_of_all_three(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)

    def trainer(kind, checkpoint):
        q0, r, model = (network(seed=seed) for seed in (1, 2, 3))
        term = SecondTerm(estimate="sum")
        task = kind("t", model, corpus(), TRAINING, 0, q0=q0, discriminator=r, second_term=term)
        return Trainer(task, TRAINING, tmp_path / checkpoint)

    expected = trainer(FinetuningStreams, "whole").run()
    with pytest.raises(KeyboardInterrupt):
        trainer(Interrupted, "parts").run()
    assert trainer(FinetuningStreams, "parts").run().history == expected.history


def test_a_users_network_can_be_read_along(tmp_path):
    """At q_θ = q_0 and r ≡ ½ the sum is 0 and so is its gradient: cross-entropy alone is left."""
    q0, model = own_network(), own_network()
    task = FinetuningStreams(
        "t",
        model,
        corpus(),
        PLAIN,
        0,
        q0=q0,
        discriminator=None,
        second_term=SecondTerm(estimate="sum"),
    )
    measured, found = gradients(task, task.batches(0, 4)[:2])
    assert measured["reverse_kl"].item() == pytest.approx(0, abs=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in found)
