"""Each head against the papers' formulas, written out one expert at a time."""

from decimal import Decimal

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paperlib.models import AWDLSTM, fused
from paperlib.models.stream import FromLogits
from paperlib.network import Network

T, B, V, E = 3, 2, 11, 4
NETWORKS = {
    "softmax": Network(head="softmax", embedding=E, hidden=(5, E)),
    "mos": Network(head="mos", embedding=E, hidden=(5, 6), experts=(0, 3)),
    "doc": Network(head="doc", embedding=E, hidden=(5, 7, 6), experts=(1, 0, 4)),
    "slices": Network(
        head="differentiated",
        embedding=E,
        hidden=(5, 7),
        blocks=[{"words": 2, "units": 4}, {"words": 5, "units": 2}, {"units": 1}],
    ),
    "projected": Network(
        head="differentiated",
        embedding=E,
        hidden=(5, 6),
        blocks=[{"words": 3, "units": 5}, {"units": 2}],
        projected=True,
    ),
}
EXPERTS = {"softmax": 1, "mos": 3, "doc": 5, "slices": 1, "projected": 1}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def new_model(network, n_words=V, seed=0):
    """Weights far enough from zero that the experts and their weights differ."""
    model = AWDLSTM(n_words, network, generator(seed)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-1.5, 1.5, generator=generator(parameter.numel() + seed))
    return model


def case(head, seed=0):
    """A model, a code of some text, the words that follow, and another model's log q_0."""
    model = new_model(NETWORKS[head], seed=seed)
    words = torch.randint(V, (T, B), generator=generator(seed + 1))
    target = torch.randint(V, (T, B), generator=generator(seed + 2))
    log_q0 = 3 * torch.randn(T, B, V, generator=generator(seed + 3), dtype=torch.float64)
    return model, model.encode(words, model.start(B))[0], target, log_q0.log_softmax(-1)


def experts_by_the_formulas(model, encoded):
    """π_k ``(T, B)`` and logits ``(T, B, V)`` of each expert."""
    weights = dict(model.named_parameters())
    output, bias = weights["embedding"], weights["head.bias"]
    last = encoded.layers[-1]
    if model.network.head == "softmax":
        return [(torch.ones_like(last[..., 0]), last @ output.T + bias)]
    if model.network.head == "differentiated":
        if model.network.projected:
            last = last @ weights["head.projection.weight"].T
        return [
            (torch.ones_like(last[..., 0]), last @ zero_blocks(weights, model.network).T + bias)
        ]
    latents = []
    feeding = [pair for pair in zip(encoded.layers, model.network.experts, strict=True) if pair[1]]
    for number, (hidden, experts) in enumerate(feeding):
        for k in range(experts):
            rows = slice(k * E, (k + 1) * E)
            matrix = weights[f"head.latents.{number}.weight"][rows]
            shift = weights[f"head.latents.{number}.bias"][rows]
            latents.append(torch.tanh(hidden @ matrix.T + shift))
    scores = (last @ weights["head.prior.weight"].T).exp()
    prior = scores / scores.sum(-1, keepdim=True)
    return [(prior[..., k], z @ output.T + bias) for k, z in enumerate(latents)]


def zero_blocks(weights, network):
    """The differentiated softmax's output matrix ``(V, Σ d_b)``, word by word."""
    rows = []
    for number in range(len(network.blocks)):
        before = sum(other.units for other in network.blocks[:number])
        after = sum(other.units for other in network.blocks[number + 1 :])
        for row in weights[f"head.weights.{number}"]:
            rows.append(torch.cat([row.new_zeros(before), row, row.new_zeros(after)]))
    assert len(rows) == V
    return torch.stack(rows)


def at(values, target):
    return values.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def by_the_formulas(experts, target, log_q0):
    """All readings, from sums of plain probabilities."""
    q = sum(
        pi[..., None] * logits.exp() / logits.exp().sum(-1, keepdim=True) for pi, logits in experts
    )
    r = sum(pi[..., None] / (1 + (-logits).exp()) for pi, logits in experts)
    not_r = sum(pi[..., None] / (1 + logits.exp()) for pi, logits in experts)
    return {
        "log_q": [q.log()],
        "log_q_of": [at(q, target).log()],
        "log_r": [r.log(), not_r.log()],
        "log_odds_of": [at(r / not_r, target).log()],
        "discriminator_loss": [-(log_q0.exp() * r.log()).sum(-1), -at(not_r, target).log()],
    }


def arguments_of(reading, log_q0, target):
    if reading == "discriminator_loss":
        return (log_q0, target)
    return (target,) if reading in ("log_q_of", "log_odds_of") else ()


def found(reading, model, encoded, target, log_q0):
    values = getattr(model, reading)(encoded, *arguments_of(reading, log_q0, target))
    return [values] if isinstance(values, torch.Tensor) else list(values)


def assert_same_gradients(values, expected, parameters):
    upstream = [torch.randn(v.shape, generator=generator(9), dtype=v.dtype) for v in expected]
    mine, theirs = (
        torch.autograd.grad(of, parameters, upstream, retain_graph=True, materialize_grads=True)
        for of in (values, expected)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11)
    assert all(gradient.any() for gradient in theirs)


READINGS = ("log_q", "log_q_of", "log_r", "log_odds_of", "discriminator_loss")
# 220 logits are several rows of experts and vocabulary, with fewer left for the last chunk.
CHUNKS = [(1 << 20, 1 << 25), (1 << 20, 0), (220, 1 << 25), (220, 0), (1, 0)]


@pytest.mark.parametrize(("chunk", "keep"), CHUNKS)
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("head", NETWORKS)
def test_values_and_gradients_are_those_of_the_formulas(head, reading, chunk, keep, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", chunk)
    monkeypatch.setattr(fused, "LEAST", 1)
    monkeypatch.setattr(fused, "KEEP", keep)
    model, encoded, target, log_q0 = case(head)
    experts = experts_by_the_formulas(model, encoded)
    assert len(experts) == EXPERTS[head]
    expected = by_the_formulas(experts, target, log_q0)[reading]
    values = found(reading, model, encoded, target, log_q0)
    with torch.no_grad():
        without_gradients = found(reading, model, encoded, target, log_q0)
    torch.testing.assert_close(values, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(without_gradients, expected, rtol=1e-11, atol=1e-12)

    assert_same_gradients(values, expected, list(model.parameters()))


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("head", NETWORKS)
def test_gradients_are_those_of_finite_differences(head, reading, monkeypatch):
    monkeypatch.setattr(fused, "KEEP", 0)  # gradcheck goes through one graph many times
    model, encoded, target, log_q0 = case(head)
    prepared = tuple(part.detach().requires_grad_() for part in encoded.head)
    encoded = encoded._replace(head=prepared)

    def read(*changed_in_place):
        return tuple(found(reading, model, encoded, target, log_q0))

    assert torch.autograd.gradcheck(read, (*prepared, model.embedding, model.head.bias))


@pytest.mark.parametrize("head", NETWORKS)
def test_the_frozen_language_model_gets_no_gradient(head):
    model, encoded, target, log_q0 = case(head)
    log_q0.requires_grad_()
    sum(part.sum() for part in model.discriminator_loss(encoded, log_q0, target)).backward()
    assert log_q0.grad is None
    assert model.embedding.grad.any()


@pytest.mark.parametrize("head", NETWORKS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_readings_are_normalised_and_agree(head, seed):
    model, encoded, target, _ = case(head, seed)
    ones = torch.ones(T, B, V, dtype=torch.float64)
    log_q = model.log_q(encoded)
    torch.testing.assert_close(log_q.exp().sum(-1), ones[..., 0])
    log_r, log_not_r = model.log_r(encoded)
    torch.testing.assert_close(torch.logaddexp(log_r, log_not_r).exp(), ones)
    rounding = 4 * torch.finfo(torch.float64).eps
    assert max(part.max() for part in (log_q, log_r, log_not_r)) <= rounding
    torch.testing.assert_close(model.log_q_of(encoded, target), at(log_q, target))
    torch.testing.assert_close(model.log_odds_of(encoded, target), at(log_r - log_not_r, target))


def test_one_expert_is_that_softmax():
    mixture = new_model(Network(head="mos", embedding=E, hidden=(6,), experts=(1,)))
    softmax = new_model(Network(head="softmax", embedding=E, hidden=(E,)))
    with torch.no_grad():
        softmax.head.bias.copy_(mixture.head.bias)
    words = torch.randint(V, (T, B), generator=generator(1))
    target, log_q0 = words.flip(0), torch.full((T, B, V), 1 / V, dtype=torch.float64).log()
    encoded, _ = mixture.encode(words, mixture.start(B))
    latent = encoded.head[0].squeeze(2)
    for reading in READINGS:
        arguments = arguments_of(reading, log_q0, target)
        torch.testing.assert_close(
            getattr(mixture.head, reading)(encoded.head, mixture.embedding, *arguments),
            getattr(softmax.head, reading)((latent,), mixture.embedding, *arguments),
        )


def exact(log_pi, logits, log_q0):
    """Readings of one context in 28 digits, from plain probabilities; the target is word 0."""
    pi = [Decimal(value).exp() for value in log_pi]
    powers = [[Decimal(value).exp() for value in row] for row in logits]
    totals = [sum(row) for row in powers]
    words = range(len(log_q0))
    k = range(len(pi))
    q = [sum(pi[j] * powers[j][w] / totals[j] for j in k) for w in words]
    r = [sum(pi[j] * powers[j][w] / (1 + powers[j][w]) for j in k) for w in words]
    not_r = [sum(pi[j] / (1 + powers[j][w]) for j in k) for w in words]
    d_q = -sum(Decimal(log_q0[w]).exp() * r[w].ln() for w in words)
    return {
        "log_q": [float(value.ln()) for value in q],
        "log_q_of": float(q[0].ln()),
        "log_r": [[float(value.ln()) for value in part] for part in (r, not_r)],
        "log_odds_of": float((r[0] / not_r[0]).ln()),
        "discriminator_loss": [float(d_q), float(-not_r[0].ln())],
    }


LOGIT = st.floats(-200, 200, width=32)


@given(
    scores=st.lists(st.floats(-150, 150, width=32), min_size=2, max_size=2),
    logits=st.lists(st.lists(LOGIT, min_size=3, max_size=3), min_size=2, max_size=2),
    log_odds=st.lists(LOGIT, min_size=3, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
# A word that every expert all but rules out, one that only an expert of weight 1e-30 allows, and
# a plain sum on the verge of underflow.
@example([0, 0], [[-100, 100, 0], [-100, 100, 0]], [100, 0, 0], torch.float32)
@example([0, -69], [[-100, 100, 0], [100, -100, 0]], [100, 0, 0], torch.float32)
@example([0, -69], [[-69, 0, 0], [0, 0, 0]], [0, 0, 0], torch.float32)
@settings(max_examples=60, deadline=None)
def test_no_probability_is_too_small(scores, logits, log_odds, dtype):
    """To a few units in the last place, down to e^-400 and experts of weight e^-300."""
    log_pi = torch.tensor(scores, dtype=dtype).log_softmax(-1)
    log_q0 = torch.tensor(log_odds, dtype=dtype).log_softmax(-1)
    network = Network(head="mos", embedding=3, hidden=(1,), experts=(2,))
    head = AWDLSTM(3, network, generator()).to(dtype).head
    prepared = (torch.tensor(logits, dtype=dtype)[None, None], log_pi[None, None])
    unit, target = torch.eye(3, dtype=dtype), torch.zeros(1, 1, dtype=torch.int64)
    expected = exact(log_pi.tolist(), logits, log_q0.tolist())

    def close(values, of):
        values = torch.stack(values) if isinstance(values, tuple) else values
        epsilon = torch.finfo(dtype).eps
        torch.testing.assert_close(
            values.detach().double().squeeze(),
            torch.tensor(of, dtype=torch.float64),
            rtol=4 * epsilon,
            atol=8 * epsilon,
        )

    for context in (torch.enable_grad(), torch.no_grad()):
        with context:
            close(head.log_q(prepared, unit), expected["log_q"])
            close(head.log_q_of(prepared, unit, target), expected["log_q_of"])
            close(head.log_r(prepared, unit), expected["log_r"])
            close(head.log_odds_of(prepared, unit, target), expected["log_odds_of"])
            loss = head.discriminator_loss(prepared, unit, log_q0[None, None], target)
            close(loss, expected["discriminator_loss"])


class Bigram(torch.nn.Module):
    """Logits from a table: a network of another kind."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        table = 3 * torch.randn(V, V, generator=generator(), dtype=torch.float64)
        self.table = torch.nn.Parameter(table.to(dtype))

    def forward(self, words):
        return self.table[words]


def test_any_network_that_gives_logits_is_a_stream_model():
    model = FromLogits(Bigram())
    _, _, target, log_q0 = case("softmax")
    words = target.flip(0)
    encoded, state = model.encode(words, model.start(B))
    assert state == model.start(B) == ()
    experts = [(torch.ones(T, B, dtype=torch.float64), model.network(words))]
    formulas = by_the_formulas(experts, target, log_q0)
    for reading in READINGS:
        values, expected = found(reading, model, encoded, target, log_q0), formulas[reading]
        torch.testing.assert_close(values, expected, rtol=1e-11, atol=1e-12)
        assert_same_gradients(values, expected, [model.network.table])
    assert model.regularisation(encoded).shape == ()
    assert model.regularisation(encoded) == 0


class Recurrent(torch.nn.Module):
    """A network with PyTorch's own recurrent layers, between which they drop units."""

    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(V, V, num_layers=2, dropout=0.5)
        self.drop = torch.nn.Dropout(0.5)
        self.seen = []

    def forward(self, words):
        self.seen.append((self.rnn.training, self.rnn.dropout, self.drop.training))
        return self.drop(self.rnn(torch.nn.functional.one_hot(words, V).float())[0])


def test_recurrent_layers_have_gradients_on_a_gpu_without_dropout():
    """cuDNN refuses them in evaluation mode."""
    model, words = FromLogits(Recurrent()), torch.randint(V, (T, B), generator=generator())
    network = model.network
    with_gradient, _ = model.encode(words, ())
    with torch.no_grad():
        without, _ = model.encode(words, ())
    assert network.seen == [(True, 0.0, False), (False, 0.5, False)]
    assert torch.equal(with_gradient, without)
    with_gradient.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in network.parameters())
    model.encode(words, (), generator())
    assert network.seen[-1] == (True, 0.5, True)
    assert (network.rnn.training, network.rnn.dropout) == (True, 0.5)
    model.encode(words, ())
    assert (network.rnn.training, network.rnn.dropout) == (False, 0.5)


@pytest.mark.parametrize(
    ("dtype", "read_in"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_logits_of_low_precision_are_read_in_float32(dtype, read_in):
    encoded, _ = FromLogits(Bigram(dtype)).encode(torch.zeros(1, 1, dtype=torch.int64), ())
    assert encoded.dtype == read_in
