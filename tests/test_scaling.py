"""The model of the cost: its numbers by other ways, and the measuring."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paperlib import paths, scaling
from paperlib.large_study import LargeStudy
from paperlib.reporting import large_tables
from paperlib.settings import load
from paperlib.training import TrainingError


@pytest.mark.parametrize("profile", ["smoke", "quick", "paper"])
def test_parameters_are_those_of_the_network(profile):
    network, words = scaling._network(profile)
    with torch.device("meta"):
        model = torch.nn.Module()
        model.embedding = torch.nn.Embedding(sum(words), network.embedding)
        model.layer = torch.nn.LSTM(network.embedding, network.hidden[0])
        sizes = zip(network.blocks, words, strict=True)
        model.head = torch.nn.ModuleList(torch.nn.Linear(b.units, size) for b, size in sizes)
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert scaling.parameters_of(network, words) == expected


def test_parameters_of_the_study(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path))
    study = LargeStudy(load("smoke"))
    found = scaling.parameters_of(*scaling._network("smoke"))
    assert found == sum(p.numel() for p in study.new_model().parameters())


def test_operations_are_those_that_pytorch_counts():
    """Forward and backward of the matrix products of one token, written out."""
    network, words = scaling._network("smoke")
    units, inputs = network.hidden[0], network.embedding
    word = torch.randn(1, inputs, requires_grad=True)
    state = torch.randn(1, units, requires_grad=True)
    weights = [torch.randn(4 * units, size, requires_grad=True) for size in (inputs, units)]
    head = [
        torch.randn(size, block.units, requires_grad=True)
        for block, size in zip(network.blocks, words, strict=True)
    ]
    latents = [torch.randn(1, block.units, requires_grad=True) for block in network.blocks]
    with FlopCounterMode(display=False) as counter:
        gates = word @ weights[0].T + state @ weights[1].T
        logits = [z @ w.T for z, w in zip(latents, head, strict=True)]
        (gates.sum() + sum(values.sum() for values in logits)).backward()
    assert scaling.operations(network, words) == counter.get_total_flops()


def test_a_ring_sends_every_gradient_twice_but_for_its_own_share():
    assert scaling.bytes_sent(100, 1) == 0
    assert scaling.bytes_sent(100, 2) == 400
    assert scaling.bytes_sent(100, 4) == 600  # 3 shares of 25 out and, summed, 3 again; 4 bytes


def test_cost_by_hand():
    machine = scaling.Processor("one", operations=1e9, link=1e6, update=1e-9)
    network, words = scaling._network("paper")
    parameters = scaling.parameters_of(network, words)
    for number, streams, each in ((1, None, 64), (8, None, 64), (8, 64, 8), (3, 64, 22)):
        found = scaling.cost(4e9, number, machine, streams)
        work = scaling.operations(network, words) * each * 35 / 1e9 + 1e-9 * parameters
        seconds = work + scaling.bytes_sent(parameters, number) / 1e6
        steps = 4e9 / 5 / (35 * (streams or 64 * number))
        assert found["hours"] == pytest.approx(steps * seconds / 3600)
        assert found["exchange_share"] == pytest.approx(1 - work / seconds)
        assert found["streams"] == (streams or 64 * number)


@pytest.mark.parametrize(("number", "streams"), [(65, 64), (1, 10_000_000)])
def test_a_plan_that_the_training_would_refuse_is_none(number, streams):
    machine = scaling.Processor("one", operations=1e9, link=1e6)
    with pytest.raises(ValueError, match="cannot share"):
        scaling.cost(4e9, number, machine, streams)


@pytest.mark.slow
def test_memory_of_a_step_in_a_fresh_process(tmp_path):
    """Within a factor of two where, as here, what a process takes for itself is not yet little."""
    text = (paths.PROFILES / "quick.toml").read_text(encoding="utf-8")
    profile = tmp_path / "own.toml"
    large = text[text.index("[large]") :].replace("words = 10000", "words = 30000")
    large = large.replace("part = 4000", "part = 1000")
    profile.write_text(text[: text.index("[large]")] + large, encoding="utf-8")
    output = tmp_path / "found.json"
    command = ["throughput", "--profile", str(profile), "--streams", "24", "--output", str(output)]
    subprocess.run(
        [sys.executable, "-m", "paperlib", *command],
        check=True,
        env=os.environ | {"PAPERLIB_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(output.read_text(encoding="utf-8"))
    network, words = scaling._network(str(profile))
    predicted = scaling.memory(network, words, found["tokens"], mixed=found["mixed"])
    assert predicted > 0.2e9
    assert 0.5 < (found["memory"] - found["base"]) / predicted < 2


def rows(**columns):
    """What was found in one process and in two."""
    found = {"words_per_second": [1000.0, 1500.0], "seconds": [1.0, 0.7], "work": [1.0, 0.6]}
    found |= {"update": [0.2, 0.3], "busy": [0.9, 0.9], "exchange": [0.0, 0.1], "base": [1, 1]}
    found |= {"streams": [4, 4], "parameters": [10, 10], "memory": [2, 2], "tokens": [8, 4]}
    found |= {"processes": [1, 2], "mixed": [False, False], "n_words": [60, 60]} | columns
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


@pytest.mark.parametrize(("busy", "crowd"), [(0.9, 1.0), (1.6, 1.6)])
def test_several_processes_are_predicted_from_one(busy, crowd, monkeypatch):
    found = {row["processes"]: row for row in rows(busy=[busy, 0.7])}
    monkeypatch.setattr(scaling, "_measured", lambda profile, number, streams: found[number])
    monkeypatch.setattr(scaling, "cores", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    table = scaling.measured("smoke", [1, 2])
    seconds = [1.0, (0.8 / 2 + 0.2) * crowd + 0.1]
    assert table["predicted"].tolist() == pytest.approx([1000, 1500 * 0.7 / seconds[1]])
    assert table["error"].iloc[1] == pytest.approx(0.7 / seconds[1] - 1)
    said = scaling.in_words(table)
    assert f"keeps {busy:.1f} of 2 processors busy; each of 2 together, 0.7." in said
    assert "1.50 times as many words a second" in said
    assert scaling.in_words(table[:1]) == said.split(";")[0] + "."
    shown = large_tables.throughput_for_people(table)
    assert shown["processes"].tolist() == ["1", "2"]
    assert shown["words a second"].tolist() == ["1,000", "1,500"]


def test_the_model_is_of_the_texts_vocabulary_not_the_profiles(monkeypatch):
    """A text of 40 words where the profile has 60."""
    found = {row["processes"]: row for row in rows(n_words=[40, 40])}
    monkeypatch.setattr(scaling, "_measured", lambda profile, number, streams: found[number])
    table = scaling.measured("smoke", [1, 2])
    network, _ = scaling._network("smoke")
    words = [10, 30]
    expected = [1 + scaling.memory(network, words, tokens) for tokens in (8, 4)]
    assert table["predicted_memory"].tolist() == pytest.approx(expected)
    rate = scaling.core("smoke", table).operations
    assert rate == pytest.approx(1000 * scaling.operations(network, words) / (1 - 0.2))


@pytest.mark.slow
def test_measuring_in_two_processes_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # for two processes that takes two
    table = scaling.measured("smoke", [1, 2], streams=4)
    assert table["processes"].tolist() == [1, 2]
    assert table["n_words"].tolist() == [60, 60]
    assert table["exchange"].iloc[0] == 0 < table["exchange"].iloc[1]
    tokens = table["words_per_second"] * table["seconds"]
    np.testing.assert_allclose(tokens.iloc[0], tokens.iloc[1])  # the same steps
    assert (table["memory"] > table["base"]).all()
    assert (table["busy"] > 0).all()

    def fails(*arguments, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(scaling.subprocess, "run", fails)
    assert scaling.measured("smoke", [1, 2], streams=4).equals(table)
    here = scaling.core("smoke", table)
    assert here.operations > 0
    assert here.link > 0


def test_a_timing_that_fails_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path))
    message = (
        r"^the steps of section 4\.3 cannot be timed \(--processes 1\): .* is too short[^.\n]*$"
    )
    with pytest.raises(TrainingError, match=message):
        scaling.measured("smoke", [1], streams=100_000)
    killed = subprocess.CompletedProcess([], -9, stderr="step 1\n")
    monkeypatch.setattr(scaling.subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(TrainingError, match=r"timed \(--processes 2\): exit code -9$"):
        scaling.measured("smoke", [2])


def test_processors_are_counted_in_powers_of_two(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for number, expected in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr(scaling, "cores", lambda number=number: number)
        assert scaling.processors_here() == expected
