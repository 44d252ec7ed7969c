"""What a GPU replays as one graph is what it computes step by step."""

import pytest
import torch

from paperlib import settings
from paperlib.captured import Captured
from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.models import AWDLSTM, LSTM
from paperlib.network import Network
from paperlib.tasks import DiscriminatorTask, FinetuningTask, LanguageModelTask, Split
from paperlib.training import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU"),
]

WORDS = 20
TRAINING = settings.Training(learning_rate=1.0, batch_size=8, clip=1.0, max_epochs=2)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0):
    shape = settings.Model(embedding=8, hidden=8, layers=2, init_range=0.1)
    return LSTM(WORDS, shape, generator(seed)).cuda()


def sentences():
    """With a last batch that is smaller than the others."""
    text = torch.randint(WORDS, (20, 5), generator=generator()).cuda()
    return Split(text, text[:4])


@pytest.fixture(params=["language model", "discriminator", "fine-tuning"])
def task(request):
    kind, frozen = {
        "language model": (LanguageModelTask, {}),
        "discriminator": (DiscriminatorTask, {"q0": network(1)}),
        "fine-tuning": (FinetuningTask, {"q0": network(1), "discriminator": network(2)}),
    }[request.param]
    return lambda: kind(request.param, network(), sentences(), seed=0, **frozen)


def trained(task, path):
    progress = Trainer(task, TRAINING, path).run()
    history = [[value for _, value in sorted(entry.items())] for entry in progress.history]
    return task.model.state_dict(), torch.tensor(history, dtype=torch.float64)


def test_a_function_is_replayed_with_other_inputs():
    square = Captured(lambda x: (x * x,), torch.ones(3, device="cuda"))
    (of_two,) = square(torch.full((3,), 2.0, device="cuda"))
    (of_three,) = square(torch.full((3,), 3.0, device="cuda"))
    assert of_two.tolist() == [4.0] * 3
    assert of_three.tolist() == [9.0] * 3
    assert not square.takes(torch.ones(4, device="cuda"))


def test_a_training_is_the_same(task, tmp_path, monkeypatch):
    weights, history = trained(task(), tmp_path / "captured.pt")
    monkeypatch.setattr(type(task()), "batches_are_alike", False)
    expected, expected_history = trained(task(), tmp_path / "plain.pt")
    torch.testing.assert_close(history, expected_history, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-5)


def test_a_training_is_the_same_each_time(task, tmp_path):
    weights, _ = trained(task(), tmp_path / "first.pt")
    again, _ = trained(task(), tmp_path / "second.pt")
    torch.testing.assert_close(again, weights, rtol=0, atol=0)


def test_dynamic_evaluation_is_the_same():
    shape = Network(head="mos", embedding=8, hidden=(8, 8), experts=(0, 3))
    model = AWDLSTM(WORDS, shape, generator())
    tokens = torch.randint(WORDS, (23,), generator=generator(1))
    update = settings.DynamicUpdate(learning_rate=1e-2, decay=0.1)
    found = []
    for device in ("cpu", "cuda"):
        on_device = model.to(device)
        rms = gradient_rms(on_device, tokens[:20].view(10, 2).to(device), update.bptt, "")
        found.append(dynamic_log_q(on_device, tokens.to(device), 0, rms, update, "").cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
