"""What a GPU replays as graphs is what it computes step by step."""

import pytest
import torch
from conftest import stops_after
from replayable import CASES, HEADS, KINDS, WORDS, generator, name_of, of_streams

from paperlib import captured, settings, stream_tasks, stream_training, tasks, training
from paperlib.captured import Replayed
from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.models import AWDLSTM, LSTM
from paperlib.training import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]


def trained(case, path, **changes):
    make, *arguments = case
    task, own = make(*arguments, **changes)
    progress = Trainer(task, own, path).run()
    return task.model.state_dict(), progress.history


class NotReplayed:
    """Runs the function as it is."""

    def __init__(self, function, *_):
        self._function = function

    def __call__(self, *inputs):
        return self._function(*inputs)


def test_a_function_is_replayed_with_other_inputs():
    calls = []

    def square(x):
        calls.append(x.shape)
        return (x * x,)

    replayed = Replayed(square)
    results = [replayed(torch.full((3,), float(k), device="cuda"))[0] for k in range(5)]
    assert [result.tolist() for result in results] == [[float(k * k)] * 3 for k in range(5)]
    assert len(calls) == 2
    assert replayed(torch.ones(4, device="cuda"))[0].tolist() == [1.0] * 4


def test_beyond_so_many_shapes_nothing_is_captured(monkeypatch):
    monkeypatch.setattr(captured, "MOST", 1)
    calls = []
    replayed = Replayed(lambda x: calls.append(x.shape) or (2 * x,))
    for _ in range(4):
        for size in (1, 2):
            assert replayed(torch.ones(size, device="cuda"))[0].tolist() == [2.0] * size
    assert calls.count((1,)) == 2
    assert calls.count((2,)) == 4


def test_gradients_count_however_they_were_cleared():
    weight = torch.nn.Parameter(torch.ones(2, device="cuda"))

    def add(x):
        (weight * x).sum().backward()
        return (x,)

    replayed, x = Replayed(add, [weight]), torch.full((2,), 3.0, device="cuda")
    for turn in range(6):
        if turn % 2:
            weight.grad = None
        else:
            weight.grad = torch.ones_like(weight)
        replayed(x)
        assert weight.grad.tolist() == [3.0 + (turn % 2 == 0)] * 2


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_training_is_the_same(case, tmp_path, monkeypatch):
    weights, history = trained(case, tmp_path / "replayed.pt")
    for module in (tasks, stream_training):
        monkeypatch.setattr(module, "Replayed", NotReplayed)
    expected, expected_history = trained(case, tmp_path / "plain.pt")
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(history, expected_history, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_training_is_the_same_each_time(case, tmp_path):
    weights, _ = trained(case, tmp_path / "first.pt")
    again, _ = trained(case, tmp_path / "second.pt")
    torch.testing.assert_close(again, weights, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_groups_of_streams_add_up(kind, tmp_path):
    """Without dropout, which each group draws for itself."""
    together, _ = trained((of_streams, kind, "mos"), tmp_path / "one.pt", regularised=False)
    groups, _ = trained((of_streams, kind, "mos"), tmp_path / "two.pt", regularised=False, parts=2)
    torch.testing.assert_close(groups, together, rtol=1e-3, atol=1e-4)


def test_dynamic_evaluation_is_the_same():
    model = AWDLSTM(WORDS, HEADS["mos"], generator())
    tokens = torch.randint(WORDS, (43,), generator=generator(1))
    update = settings.DynamicUpdate(learning_rate=1e-2, decay=0.1)
    found, statistics = [], []
    for device in ("cpu", "cuda"):
        on_device = model.to(device)
        words = tokens[:42].view(21, 2).to(device)  # pieces enough that some are replayed
        rms = gradient_rms(on_device, words, update.bptt, "")
        found.append(dynamic_log_q(on_device, tokens.to(device), 0, rms, update, "").cpu())
        statistics.append([value.cpu() for value in rms])
    torch.testing.assert_close(statistics[1], statistics[0], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_what_does_not_say_that_it_can_be_is_not_replayed():
    device = torch.device("cuda")
    assert captured.can_replay(device, [LSTM(WORDS, settings.Model(), generator())])
    assert not captured.can_replay(device, [torch.nn.Linear(1, 1)])


def test_resumed_equals_uninterrupted_dropout_included(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY_SECONDS", -1.0)
    case = (of_streams, "language model", "doc")
    expected, _ = trained(case, tmp_path / "whole.pt")
    whole = stream_tasks.LanguageModelStreams

    def interrupted(*given, **options):
        return stops_after(whole(*given, **options), 20)

    with monkeypatch.context() as patch:
        patch.setattr(stream_tasks, "LanguageModelStreams", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trained(case, tmp_path / "parts.pt")
    weights, _ = trained(case, tmp_path / "parts.pt")
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
