"""Dynamic evaluation against steps worked out by hand."""

import copy

import pytest
import torch
from torch import nn

from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.models import AWDLSTM
from paperlib.models.stream import FromLogits
from paperlib.network import Network
from paperlib.settings import DynamicUpdate

NETWORK = Network(head="softmax", embedding=4, hidden=(5, 4))


@pytest.fixture
def model():
    return AWDLSTM(7, NETWORK, torch.Generator().manual_seed(0)).double()


def tokens(n, seed=1):
    return torch.randint(7, (n,), generator=torch.Generator().manual_seed(seed))


def nll(model, words, target, state):
    encoded, state = model.encode(words[:, None], state)
    log_q = model.log_q(encoded)[:, 0].gather(-1, target[:, None])[:, 0]
    return log_q, state


def test_rms_is_the_root_mean_square_of_the_pieces_gradients(model):
    text = tokens(9)
    found = gradient_rms(model, text[:, None], 4, "t")
    state, squares = model.start(1), [0.0 for _ in model.parameters()]
    for start in (0, 4):
        log_q, state = nll(model, text[start : start + 4], text[start + 1 : start + 5], state)
        gradients = torch.autograd.grad(-log_q.mean(), list(model.parameters()))
        squares = [s + g**2 for s, g in zip(squares, gradients, strict=True)]
    for mine, square in zip(found, squares, strict=True):
        torch.testing.assert_close(mine, (square / 2).sqrt())


def test_two_pieces_by_hand(model):
    """The first piece is counted with the trained weights, the second after one update."""
    text, eos = tokens(6), 2
    rms = [torch.rand_like(parameter) + 0.1 for parameter in model.parameters()]
    update = DynamicUpdate(learning_rate=0.3, decay=0.4, epsilon=0.05, bptt=3)
    found = dynamic_log_q(model, text, eos, rms, update, "t")

    moved = copy.deepcopy(model)
    history = torch.cat([torch.tensor([eos]), text])
    state, expected = moved.start(1), []
    mean = torch.stack([value.mean() for value in rms]).mean()
    trained = [parameter.detach().clone() for parameter in model.parameters()]
    for start in (0, 3):
        log_q, state = nll(moved, history[start : start + 3], text[start : start + 3], state)
        expected.append(log_q.detach())
        gradients = torch.autograd.grad(-log_q.mean(), list(moved.parameters()))
        with torch.no_grad():
            for theta, theta0, r, g in zip(
                moved.parameters(), trained, rms, gradients, strict=True
            ):
                back = torch.minimum(0.4 * r / mean, torch.tensor(1.0)) * (theta0 - theta)
                theta += -0.3 * g / (r + 0.05) + back
    torch.testing.assert_close(found, torch.cat(expected))
    assert not torch.allclose(
        found[3:],
        dynamic_log_q(
            model, text, eos, rms, update.model_copy(update={"learning_rate": 1e-12}), "t"
        )[3:],
    )


def test_a_vanishing_rate_is_static_evaluation(model):
    text = tokens(20)
    rms = [torch.ones_like(parameter) for parameter in model.parameters()]
    update = DynamicUpdate(learning_rate=1e-12, decay=0.1, bptt=4)
    history = torch.cat([torch.tensor([3]), text])[:-1]
    expected, _ = nll(model, history, text, model.start(1))
    torch.testing.assert_close(dynamic_log_q(model, text, 3, rms, update, "t"), expected.detach())


def test_a_model_without_memory_is_read_in_its_own_pieces():
    network = FromLogits(nn.Embedding(7, 7), piece=8)
    with pytest.raises(ValueError, match="reads pieces of 8 words"):
        gradient_rms(network, tokens(30).view(15, 2), 5, "t")
    rms = gradient_rms(network, tokens(30).view(15, 2), 8, "t")
    update = DynamicUpdate(bptt=8)
    assert dynamic_log_q(network, tokens(30), 0, rms, update, "t").shape == (30,)


def test_the_model_itself_stays_as_it_is(model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rms = gradient_rms(model, tokens(30).view(15, 2), 5, "t")
    dynamic_log_q(model, tokens(30), 0, rms, DynamicUpdate(learning_rate=0.1), "t")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in model.parameters())
