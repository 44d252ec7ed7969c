"""Nothing that a GPU replays asks for a value, which it would have to be waited for.

On a CPU: tensors say that they are on a GPU, so that the steps take its way, and PyTorch's
dispatcher sees each operation. Kernels are stood in for by plain PyTorch.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from replayable import IN_FLOAT32, name_of
from torch.utils._python_dispatch import TorchDispatchMode

from paperlib.models import fused

ASKS = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique2"}
"""Operations whose result, or its shape, is a value that Python waits for."""


class Asked(AssertionError):
    """A value was asked for."""


class NothingAsked(TorchDispatchMode):
    """Inside, an operation that asks for a value raises :class:`Asked`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        masks = name == "index" and any(at is not None and at.dtype == torch.bool for at in args[1])
        if masks or name in ASKS:
            raise Asked(name)
        return function(*args, **(kwargs or {}))


def largest_and_total(logits, bias):
    logits = logits + bias
    largest = logits.amax(-1)
    return largest, (logits - largest.unsqueeze(-1)).exp().sum(-1)


def sigmoid_mixture(logits, bias, log_pi, log_q0, dtype):
    with torch.enable_grad():
        logits, log_pi = ((part.detach()).requires_grad_() for part in (logits + bias, log_pi))
        log_r = (F.logsigmoid(logits) + log_pi.unsqueeze(-1)).logsumexp(1)
        value = -(log_q0.exp() * log_r).sum(-1)
        gradients = torch.autograd.grad(value.sum(), (logits, log_pi))
    return value.detach(), *gradients


KERNELS = SimpleNamespace(
    largest_and_total=largest_and_total,
    exponentials=lambda logits, bias, largest, dtype: (
        (logits + bias - largest.unsqueeze(-1)).exp().to(dtype)
    ),
    mixture=lambda logits, bias, log_pi: (
        (logits + bias).log_softmax(-1) + log_pi.unsqueeze(-1)
    ).logsumexp(1),
    sigmoid_mixture=sigmoid_mixture,
)


@pytest.fixture
def like_a_gpu(monkeypatch):
    monkeypatch.setattr(fused, "_gpu_kernels", lambda: KERNELS)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)


def step(case):
    """The task, and its second batch, after the first one was worked on."""
    make, *arguments = case
    task, own = make(*arguments, device="cpu")
    first, second, *_ = task.batches(0, own.batch_size)
    task.backward(first)
    return task, second


@pytest.mark.parametrize("case", IN_FLOAT32, ids=name_of)
def test_no_step_asks_for_a_value(case, like_a_gpu):
    task, batch = step(case)
    with NothingAsked():
        measures = task.backward(batch)
    assert measures["loss"] > 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: bool(x.isnan().any()),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
    ],
)
def test_what_asks_is_noticed(ask):
    with NothingAsked(), pytest.raises(Asked):
        ask(torch.ones(3))
