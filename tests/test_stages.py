"""Stages: done once, resumed, found again, never shared by two different settings."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from conftest import stops_after
from torch import nn

from paperlib import hardware, stages, training
from paperlib.checkpoints import (
    CheckpointError,
    checksum,
    load_arrays,
    load_json,
    load_weights,
    save_weights,
)
from paperlib.models import LSTM
from paperlib.settings import Model, SentenceTraining
from paperlib.tasks import LanguageModelTask, Split


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path))
    return tmp_path


def new_model():
    return LSTM(7, Model(embedding=4, hidden=4), torch.Generator().manual_seed(0))


def train(settings, key=None, interrupt_after=None):
    sentences = torch.randint(7, (40, 5), generator=torch.Generator().manual_seed(1))
    made = []

    def make_task(model):
        made.append(model)
        task = LanguageModelTask("t", model, Split(sentences[:30], sentences[30:]), seed=0)
        return task if interrupt_after is None else stops_after(task, interrupt_after)

    return stages.train("test", key or {"seed": 0}, settings, new_model(), make_task), made


SETTINGS = SentenceTraining(batch_size=10, max_epochs=2)


def test_a_finished_stage_is_found_again_without_its_task():
    first, made = train(SETTINGS)
    assert len(made) == 1
    second, made = train(SETTINGS)
    assert made == []
    assert second.history == first.history
    for mine, theirs in zip(second.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not (first.folder / "checkpoint.pt").exists()


def test_whatever_differs_gets_its_own_folder():
    folders = {
        train(settings, key)[0].folder
        for settings in (SETTINGS, SETTINGS.model_copy(update={"learning_rate": 0.5}))
        for key in ({"seed": 0}, {"seed": 1})
    }
    assert len(folders) == 4


def test_an_interrupted_stage_goes_on_to_the_same_result(monkeypatch, tmp_path):
    whole, _ = train(SETTINGS)
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "interrupted"))
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(SETTINGS, interrupt_after=4)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", 60.0)
    resumed, made = train(SETTINGS)
    assert len(made) == 1
    assert resumed.history == whole.history


def test_data_enter_a_key_by_what_they_are():
    words = np.arange(6).reshape(2, 3)
    assert checksum(words) == checksum(np.asfortranarray(words))
    assert checksum(words) == checksum(words.astype(">i8"))
    assert checksum(words) != checksum(words + 1)


def test_damaged_weights_are_named():
    trained, _ = train(SETTINGS)
    (trained.folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read .* delete"):
        _ = train(SETTINGS)[0].model


@pytest.mark.parametrize(("folder", "again"), [("runs/test/0123", True), ("figures/quick", False)])
def test_only_what_can_be_computed_again_is_to_be_deleted(folder, again, tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path / "runs"))
    path = tmp_path / folder / "file"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"damaged")
    for load in (load_json, load_arrays, lambda path: load_weights(path, new_model())):
        with pytest.raises(CheckpointError, match=rf"{folder}/file cannot be read \(") as raised:
            load(path)
        assert str(raised.value).endswith("; delete its folder to compute it again") == again
        assert ("delete" in str(raised.value)) == again


def test_curves_are_there_without_the_weights():
    trained, _ = train(SETTINGS)
    (trained.folder / "model.safetensors").unlink()
    again, made = train(SETTINGS)
    assert made == []
    assert again.history == trained.history
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        _ = again.model


def test_what_another_machine_trained_in_its_precision_is_found(monkeypatch):
    """As when runs/ was carried from a GPU to a laptop."""
    up_to_the_machine = SETTINGS.model_copy(update={"precision": "auto"})
    monkeypatch.setattr(hardware, "precision", lambda name: "mixed" if name == "auto" else name)
    there, _ = train(up_to_the_machine)
    monkeypatch.setattr(hardware, "precision", lambda name: "float32" if name == "auto" else name)
    here, made = train(up_to_the_machine)
    assert made == []
    assert here.folder == there.folder
    asked_for, made = train(SETTINGS.model_copy(update={"precision": "float32"}))
    assert len(made) == 1
    assert asked_for.folder != there.folder
    # What this machine trained itself comes first.
    found, made = train(up_to_the_machine)
    assert (found.folder, made) == (asked_for.folder, [])


def test_weights_of_another_network_are_not_called_damaged(tmp_path):
    save_weights(tmp_path / "model.safetensors", new_model())
    other = LSTM(7, Model(embedding=5, hidden=4), torch.Generator().manual_seed(0))
    with pytest.raises(CheckpointError, match=r"model\.safetensors holds .* another network"):
        load_weights(tmp_path / "model.safetensors", other)


class Tied(nn.Module):
    """Embedding and output weights are the same tensor, as in many language models."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight


def test_tied_weights_are_kept_and_stay_tied(tmp_path):
    model, other = Tied(), Tied()
    save_weights(tmp_path / "model.safetensors", model)
    load_weights(tmp_path / "model.safetensors", other)
    assert torch.equal(other.output.weight, model.embedding.weight)
    assert other.output.weight is other.embedding.weight


def count_in(folder):
    os.environ["PAPERLIB_RUNS"] = str(folder)

    def compute(stage):
        with (stage / "log").open("a") as log:
            log.write("computed\n")

    stages.once("count", {"key": 1}, compute)


def test_two_processes_compute_a_stage_once(runs):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=count_in, args=(runs,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert all(process.exitcode == 0 for process in processes)
    folder = stages.folder_of("count", {"key": 1})
    assert (folder / "log").read_text() == "computed\n"


def entries(*of_epochs):
    return [{"d": d, "learning_rate": rate} for d, rate in of_epochs]


def test_epochs_that_were_given_up_are_not_on_the_way_to_the_best_weights():
    history = entries((9, 1.0), (5, 1.0), (7, 1.0), (4, 0.1), (3, 0.1), (6, 0.1))
    assert stages.rates_along_kept_path(history, "d") == [1.0, 0.1, 0.1]
    assert stages.rates_along_kept_path(entries((9, 1.0), (10, 1.0), (8, 0.1)), "d") == [0.1]
    assert stages.rates_along_kept_path(entries((9, 1.0), (10, 1.0)), "d") == []
