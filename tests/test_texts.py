"""Text in parts: which part comes when, and training on it."""

from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from conftest import stops_after

from paperlib import training
from paperlib.corpora import CorpusError
from paperlib.models import AWDLSTM
from paperlib.network import Network
from paperlib.settings import StreamTraining
from paperlib.shards.documents import TextError
from paperlib.shards.parts import Shards
from paperlib.shards.prepare import TextSettings, prepare
from paperlib.shards.texts import ShardedText, SyntheticText
from paperlib.stream_tasks import (
    DiscriminatorStreams,
    FinetuningStreams,
    LanguageModelStreams,
)
from paperlib.stream_text import streams_of
from paperlib.training import Trainer, TrainingError
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
    options = TextSettings(tokens="whitespace", vocabulary=25, valid=0.1, test=0.1, part_bytes=900)
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
    assert read == [0, 1, 2]

    task = stops_after(list(tasks(text()))[kind], 11)
    with pytest.raises(KeyboardInterrupt):
        Trainer(task, TRAINING, tmp_path / "parts.pt").run()
    read.clear()
    resumed = Trainer(list(tasks(text()))[kind], TRAINING, tmp_path / "parts.pt").run()
    assert resumed.history == whole.history
    assert read == [1, 2]


def test_frozen_scalars_are_those_of_the_part(tmp_path, monkeypatch):
    *_, task = tasks(synthetic())
    for epoch in (0, 2):
        task.batches(epoch, 3)
        q0 = task._frozen["q0"]
        words, target = task.train[:-1], task.train[1:]
        with torch.no_grad():
            encoded, _ = q0.encode(words, q0.start(3))
            expected = q0.log_q_of(encoded, target)
        torch.testing.assert_close(task._cached[0], expected)


def test_a_model_learns_from_shards(tmp_path, monkeypatch):
    text = sharded(tmp_path, monkeypatch)
    model = AWDLSTM(text.n_words, NETWORK, torch.Generator().manual_seed(0))
    task = LanguageModelStreams("language model", model, text, TRAINING, 0)
    history = Trainer(task, TRAINING, tmp_path / "model.pt").run().history
    assert history[-1]["perplexity"] < history[0]["perplexity"]


class Listed:
    """Parts that are given; ``read`` says which were fetched."""

    def __init__(self, parts):
        self.parts, self.read = parts, []

    def part_tokens(self, number):
        return len(self.parts[number])

    def train_part(self, number):
        self.read.append(number)
        return self.parts[number]


def test_streams_of_an_epoch_come_from_its_parts_and_every_process_reads_its_own():
    sizes = ((0, 21), (100, 26), (200, 23))
    text = Listed([np.arange(start, start + size) for start, size in sizes])
    whole = streams_of(text, range(3), 6, slice(0, 6))
    assert whole.shape == (10, 6)  # the shortest part has streams of ten tokens
    for column, start in enumerate((0, 10, 100, 113, 200, 211)):
        np.testing.assert_array_equal(whole[:, column], np.arange(start, start + 10))
    shares, read = [], []
    for mine in (slice(0, 1), slice(1, 4), slice(4, 6)):
        text.read = []
        shares.append(streams_of(text, range(3), 6, mine))
        read.append(text.read)
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)
    assert read == [[0], [0, 1], [2]]
    with pytest.raises(TrainingError, match="7 streams cannot be shared out among 3 parts"):
        streams_of(text, range(3), 7, slice(0, 7))
    with pytest.raises(CorpusError, match="a text of 21 tokens is too short"):
        streams_of(text, range(3), 60, slice(59, 60))  # which is not of that part


def test_validation_text_is_no_longer_than_an_epochs(tmp_path, monkeypatch):
    text = sharded(tmp_path, monkeypatch)
    whole = np.concatenate([part.ids() for part in text.shards.parts("valid")])
    mean = text.shards.tokens("train") // len(text.shards.parts("train"))
    assert len(text.valid) == min(mean, len(whole))
    text = ShardedText(text.shards, 0)
    monkeypatch.setattr(type(text.shards), "tokens", lambda self, split: 5 * 20)
    np.testing.assert_array_equal(text.valid, whole[:20])
    assert text.valid_tokens == 20


def test_epochs_of_several_parts_take_each_part_once():
    text = SyntheticText(TrigramLanguage(n_words=20), 0, **SIZES, parts_at_once=3)
    model = AWDLSTM(text.n_words, NETWORK, torch.Generator().manual_seed(0))
    task = LanguageModelStreams("language model", model, text, TRAINING, 0)
    for epoch in (0, 1):
        task.batches(epoch, 3)
        parts = [text.train_part(3 * epoch + number) for number in range(3)]
        expected = np.stack(parts, axis=1)  # one stream each
        np.testing.assert_array_equal(task.train.numpy(), expected)


def test_shards_elsewhere_are_fetched_once_and_checked(tmp_path, monkeypatch):
    here = sharded(tmp_path, monkeypatch).shards
    place = fsspec.filesystem("memory")
    place.put(here.address, "/elsewhere", recursive=True)
    try:
        there = Shards("memory://elsewhere")
        assert there.words() == here.words()
        assert there.checksum == here.checksum
        for split in ("train", "valid", "test"):
            for one, other in zip(there.parts(split), here.parts(split), strict=True):
                np.testing.assert_array_equal(one.ids(), other.ids())
        first, second = (part.address for part in there.parts("train")[:2])
        place.rm(first)  # it is here already
        assert len(there.parts("train")[0].ids())

        monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "other"))
        with pytest.raises(TextError, match="cannot be fetched"):
            there.parts("train")[0].ids()
        content = bytearray(place.cat_file(second))
        content[-1] ^= 1
        place.pipe_file(second, bytes(content))
        with pytest.raises(TextError, match="is damaged: its checksum is another one"):
            there.parts("train")[1].ids()
        assert not list((tmp_path / "other").rglob("*.npy"))
    finally:
        place.rm("/elsewhere", recursive=True)


def cut(path):
    path.write_bytes(path.read_bytes()[:-400])


def shorter(path):
    np.save(path, np.load(path)[:100])


def of_another_kind(path):
    np.save(path, np.load(path).astype(np.int64))


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [Path.unlink, cut, shorter, of_another_kind, empty])
def test_parts_that_are_here_are_looked_at(damage, tmp_path, monkeypatch):
    part = sharded(tmp_path, monkeypatch).shards.parts("train")[0]
    damage(Path(part.address))
    with pytest.raises(TextError, match=r"the part .*\.npy (cannot be read|is damaged)"):
        part.ids()


def test_shards_without_their_vocabulary_are_refused(tmp_path, monkeypatch):
    shards = sharded(tmp_path, monkeypatch).shards
    Path(shards.address, "vocabulary.txt").unlink()
    with pytest.raises(TextError, match="has no vocabulary"):
        shards.words()


def test_an_address_without_shards_is_refused(tmp_path):
    for address in ("memory://nothing", str(tmp_path), "nowhere://at/all"):
        with pytest.raises(TextError, match="holds no shards"):
            Shards(address)


@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"weight_map": {}}', '{"left_out": {}, "parts": []}', "3"]
    + [f'{{"left_out": {{}}, "parts": {parts}}}' for parts in ('{"train": []}', '{"train": [1]}')],
)
def test_an_index_of_another_program_is_refused(index, tmp_path):
    (tmp_path / "index.json").write_text(index, encoding="utf-8")
    with pytest.raises(TextError, match=r"holds no shards \(its index\.json is another program's"):
        Shards(tmp_path)
