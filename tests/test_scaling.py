"""The model of the cost: its numbers by other ways, and the measuring."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from paperlib import scaling
from paperlib.large_study import LargeStudy
from paperlib.settings import load


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
    machine = scaling.Processor("one", operations=1e9, link=1e6)
    network, words = scaling._network("paper")
    tokens = 64 * 35
    work = scaling.operations(network, words) * tokens / 1e9
    for number in (1, 8):
        found = scaling.cost(4e9, number, machine)
        seconds = work + scaling.bytes_sent(scaling.parameters_of(network, words), number) / 1e6
        steps = 4e9 / 5 / (tokens * number)
        assert found["hours"] == pytest.approx(steps * seconds / 3600)
        assert found["exchange_share"] == pytest.approx(1 - work / seconds)
    assert 0.1e9 < found["memory"] < 1e9


@pytest.mark.slow
def test_measuring_in_two_processes_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_RUNS", str(tmp_path))
    table = scaling.measured("smoke", [1, 2], streams=4)
    assert table["processes"].tolist() == [1, 2]
    assert table["exchange"].iloc[0] == 0 < table["exchange"].iloc[1]
    tokens = table["words_per_second"] * table["seconds"]
    np.testing.assert_allclose(tokens.iloc[0], tokens.iloc[1])  # the same steps
    expected = tokens / (table["work"] + table["exchange"])
    np.testing.assert_allclose(table["predicted"], expected)

    def fails(*arguments, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(scaling.subprocess, "run", fails)
    assert scaling.measured("smoke", [1, 2], streams=4).equals(table)
    here = scaling.core("smoke", table)
    assert here.operations > 0
    assert here.link > 0


def test_processors_are_counted_in_powers_of_two(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for number, expected in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr(scaling, "cores", lambda number=number: number)
        assert scaling.processors_here() == expected
