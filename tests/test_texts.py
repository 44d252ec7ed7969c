"""Text in parts: which part comes when, and training on it."""

import numpy as np
import pytest
import torch

from paperlib import training
from paperlib.models import AWDLSTM
from paperlib.network import Network
from paperlib.settings import StreamTraining
from paperlib.shards.prepare import TextSettings, prepare
from paperlib.shards.texts import ShardedText, SyntheticText
from paperlib.stream_tasks import DiscriminatorStreams, FinetuningStreams, LanguageModelStreams
from paperlib.training import Trainer
from paperlib.trigram import TrigramLanguage

SIZES = {"part": 30, "valid": 12, "test": 5, "length": 4}
NETWORK = Network(
    head="differentiated",
    embedding=6,
    hidden=(7,),
    blocks=[{"words": 5, "units": 5}, {"units": 2}],
)
TRAINING = StreamTraining(
    learning_rate=1.0, batch_size=3, bptt=6, max_epochs=3, patience=9, regularised=False
)


def synthetic(seed=0):
    return SyntheticText(TrigramLanguage(n_words=20), seed, **SIZES)


def sharded(tmp_path, monkeypatch, seed=0):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))
    folder = tmp_path / "text"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(5):
        lines = (" ".join(f"w{k}" for k in rng.integers(30, size=6)) for _ in range(40))
        (folder / f"{number}.txt").write_text("\n\n".join(lines), encoding="utf-8")
    options = TextSettings(tokens="whitespace", vocabulary=25, valid=0.1, test=0.1)
    return ShardedText(prepare(folder, options), seed)


def test_each_pass_takes_every_part_once_in_another_order(tmp_path, monkeypatch):
    text = sharded(tmp_path, monkeypatch)
    parts = [bytes(np.asarray(text.train_part(epoch))) for epoch in range(10)]
    assert set(parts[:5]) == set(parts[5:])
    assert len(set(parts)) == 5
    assert parts[:5] != parts[5:]
    again = sharded(tmp_path, monkeypatch)
    assert bytes(np.asarray(again.train_part(7))) == parts[7]
    other = sharded(tmp_path, monkeypatch, seed=1)
    assert [bytes(np.asarray(other.train_part(epoch))) for epoch in range(5)] != parts[:5]


def test_synthetic_parts_are_sentences_that_differ_from_part_to_part():
    text = synthetic()
    first, second = text.train_part(0), text.train_part(1)
    assert first.shape == second.shape == (30 * 5,)
    assert (first.reshape(30, 5)[:, -1] == text.eos).all()
    assert first.reshape(30, 5)[:, :-1].min() >= 1
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(synthetic().train_part(1), second)
    assert not np.array_equal(text.valid[:25], text.test)


def test_true_probabilities_are_the_languages_and_ends_are_certain():
    text = synthetic()
    log_p = text.log_p(text.test).reshape(5, 5)
    words = text.test.reshape(5, 5)[:, :-1].astype(int)
    np.testing.assert_allclose(log_p[:, :-1], text.language.log_prob(words))
    assert (log_p[:, -1] == 0).all()


def tasks(text):
    """One of each kind, from the same weights."""
    q0, r, tuned = (
        AWDLSTM(text.n_words, NETWORK, torch.Generator().manual_seed(seed)) for seed in (0, 1, 0)
    )
    options = (text, TRAINING, 0)
    yield LanguageModelStreams("language model", tuned, *options)
    yield DiscriminatorStreams("discriminator", r, *options, q0=q0)
    yield FinetuningStreams("fine-tuning", tuned, *options, q0=q0, discriminator=r)


@pytest.mark.parametrize("kind", range(3))
def test_an_epoch_is_one_part_also_after_an_interruption(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
    read = []

    class Watched(SyntheticText):
        def train_part(self, epoch):
            read.append(epoch)
            return super().train_part(epoch)

    def text():
        return Watched(TrigramLanguage(n_words=20), 0, **SIZES)

    whole = Trainer(list(tasks(text()))[kind], TRAINING, tmp_path / "whole.pt").run()
    assert read[-3:] == [0, 1, 2]

    task = list(tasks(text()))[kind]
    original, left = task.backward, iter(range(11))

    def stops(batch):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return original(batch)

    task.backward = stops
    with pytest.raises(KeyboardInterrupt):
        Trainer(task, TRAINING, tmp_path / "parts.pt").run()
    resumed = Trainer(list(tasks(text()))[kind], TRAINING, tmp_path / "parts.pt").run()
    assert resumed.history == whole.history


def test_frozen_scalars_are_those_of_the_part(tmp_path, monkeypatch):
    *_, task = tasks(synthetic())
    for epoch in (0, 2):
        task.batches(epoch, 3)
        q0, _ = task._frozen
        words, target = task.train[:-1], task.train[1:]
        with torch.no_grad():
            encoded, _ = q0.encode(words, q0.start(3))
            expected = q0.log_q_of(encoded, target)
        torch.testing.assert_close(task._log_q0, expected)


def test_a_model_learns_from_shards(tmp_path, monkeypatch):
    text = sharded(tmp_path, monkeypatch)
    model = AWDLSTM(text.n_words, NETWORK, torch.Generator().manual_seed(0))
    task = LanguageModelStreams("language model", model, text, TRAINING, 0)
    history = Trainer(task, TRAINING, tmp_path / "model.pt").run().history
    assert history[-1]["perplexity"] < history[0]["perplexity"]
