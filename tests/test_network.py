"""A network as its settings give it: what is refused, size, first weights, regularisation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from paperlib.models import AWDLSTM
from paperlib.models.differentiated import block_sizes
from paperlib.network import Dropout, Network
from paperlib.profile_files import SettingsError

T, B, V = 5, 3, 9
SHAPE = {"head": "doc", "embedding": 4, "hidden": (5, 6, 4), "experts": (1, 0, 2)}
SOFTMAX = {"head": "softmax", "embedding": 4, "hidden": (5, 4)}
BLOCKS = ({"words": 3, "units": 3}, {"units": 1})
DIFFERENTIATED = {"head": "differentiated", "embedding": 4, "hidden": (5, 4), "blocks": BLOCKS}
SLICES = "the blocks are slices of the last layer's 4 units, but they have 6 in all"
WIDTHS = "shares its weights with the embedding, so the last layer must have 4 units, not 5"
PER_LAYER = "needs a number of experts for each of the 3 layers, the last one at least 1"


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def encoded_by(options, words=T):
    """A model and its code of some words; with dropout."""
    model = AWDLSTM(V, Network.model_validate(SHAPE | options), generator()).double()
    text = torch.randint(V, (words, B), generator=generator(1))
    return model, model.encode(text, model.start(B), generator(2))[0]


def test_a_changed_copy_is_checked_too():
    network = Network.model_validate(SOFTMAX)
    with pytest.raises(SettingsError, match="Network: head: Input should be"):
        network.model_copy(update={"head": "nonsense"})
    with pytest.raises(SettingsError, match="head 'softmax' has no experts"):
        network.model_copy(update={"experts": (0, 1)})


@pytest.mark.parametrize(
    ("shape", "changed", "message"),
    [
        (SOFTMAX, {"experts": (0, 1)}, "head 'softmax' has no experts; leave `experts` out"),
        (SOFTMAX, {"hidden": (4, 5)}, f"head 'softmax' {WIDTHS}"),
        (SOFTMAX, {"balance": 0.1}, "balance needs at least two experts; leave it out"),
        (SOFTMAX, {"dropout": {"latent": 0.1}}, "dropout.latent needs experts; leave it out"),
        (SHAPE, {"experts": (1, 2)}, f"head 'doc' {PER_LAYER}"),
        (SHAPE, {"experts": (1, 2, 0)}, f"head 'doc' {PER_LAYER}"),
        (SHAPE, {"head": "mos", "experts": ()}, f"head 'mos' {PER_LAYER}"),
        (
            SHAPE,
            {"experts": (0, 0, 2)},
            "head 'doc' needs experts on an inner layer; without, it is 'mos'",
        ),
        (
            SHAPE,
            {"head": "mos"},
            "head 'mos' has experts on the last layer alone; 'doc' on inner ones",
        ),
        (
            SHAPE,
            {"head": "mos", "experts": (0, 0, 1), "balance": 0.1},
            "balance needs at least two experts; leave it out",
        ),
        (
            SOFTMAX,
            {"blocks": BLOCKS},
            "head 'softmax' has no blocks; leave `blocks` and `projected` out",
        ),
        (
            DIFFERENTIATED,
            {"experts": (0, 1)},
            "head 'differentiated' has no experts; leave `experts` out",
        ),
        (
            DIFFERENTIATED,
            {"blocks": ()},
            "head 'differentiated' needs `blocks`, the most frequent words first",
        ),
        (
            DIFFERENTIATED,
            {"blocks": ({"words": 3, "units": 5}, {"units": 1})},
            f"{SLICES}; make these equal or set `projected`",
        ),
        (
            DIFFERENTIATED,
            {"blocks": ({"words": 3, "units": 3}, {"words": 2, "units": 1})},
            "each block but the last needs `words`; the last one takes what is left",
        ),
    ],
)
def test_networks_that_cannot_be_are_refused_in_a_sentence(shape, changed, message):
    Network.model_validate(shape)
    with pytest.raises(ValidationError) as error:
        Network.model_validate(shape | changed)
    [problem] = error.value.errors()
    assert problem["msg"] == f"Value error, {message}"


@pytest.mark.parametrize(
    ("changed", "where", "message"),
    [
        ({"dropout": {"weight": 1.0}}, ("dropout", "weight"), "less than 1"),
        ({"dropout": {"input": -0.1}}, ("dropout", "input"), "greater than or equal to 0"),
        ({"dropout": {"weights": 0.5}}, ("dropout", "weights"), "not permitted"),
        ({"rate": 0.5}, ("rate",), "not permitted"),
        ({"hidden": ()}, ("hidden",), "at least 1 item"),
        ({"hidden": (5, 0, 4)}, ("hidden", 1), "greater than or equal to 1"),
        ({"experts": (1, -1, 2)}, ("experts", 1), "greater than or equal to 0"),
        ({"embedding": 4.5}, ("embedding",), "valid integer"),
        ({"head": "mix"}, ("head",), "'softmax', 'mos', 'doc' or 'differentiated'"),
        ({"temporal": -1.0}, ("temporal",), "greater than or equal to 0"),
        ({"init_range": 0.0}, ("init_range",), "greater than 0"),
        ({"activation": float("nan")}, ("activation",), "finite number"),
        ({"temporal": float("inf")}, ("temporal",), "finite number"),
    ],
)
def test_numbers_out_of_range_are_refused_where_they_are(changed, where, message):
    with pytest.raises(ValidationError) as error:
        Network.model_validate(SHAPE | changed)
    [problem] = error.value.errors()
    assert problem["loc"] == where
    assert message in problem["msg"]


def test_settings_survive_json_and_cannot_be_edited():
    network = Network(**SHAPE, dropout=Dropout(weight=0.5), temporal=1.0)
    assert Network.model_validate_json(network.model_dump_json()) == network
    with pytest.raises(ValidationError, match="frozen"):
        network.temporal = 2.0
    with pytest.raises(ValidationError, match="frozen"):
        network.dropout.weight = 0.1


def parameters_by_hand(n_words, embedding, hidden, experts):
    """Tied embedding and its bias, LSTM layers with two biases, latents, mixture weights."""
    total = n_words * embedding + n_words
    for inputs, units in zip((embedding, *hidden), hidden, strict=False):
        total += 4 * units * (inputs + units + 2)
    for units, k in zip(hidden, experts, strict=True):
        total += k * embedding * (units + 1)
    return total + hidden[-1] * sum(experts)


PTB = (10_000, 280, (960, 960, 620))
WIKITEXT2 = (33_278, 300, (1150, 1150, 650))


@pytest.mark.parametrize(
    ("shape", "experts", "millions"),
    [
        (PTB, (0, 0, 15), 22),
        (PTB, (0, 5, 15), 23),
        (WIKITEXT2, (0, 0, 15), 35),
        (WIKITEXT2, (0, 5, 15), 37),
    ],
)
def test_sizes_are_the_published_ones(shape, experts, millions):
    """Tables of Yang et al. (2017) and Takase et al. (2018), which round to a million."""
    n_words, embedding, hidden = shape
    head = "doc" if any(experts[:-1]) else "mos"
    network = Network(head=head, embedding=embedding, hidden=hidden, experts=experts)
    model = AWDLSTM(n_words, network, generator())
    size = sum(weights.numel() for weights in model.parameters())
    assert size == parameters_by_hand(*shape, experts)
    assert round(size / 1e6) == millions
    assert size == pytest.approx(millions * 1e6, rel=0.03)


def test_a_softmax_adds_a_bias_alone():
    model = AWDLSTM(V, Network(**SOFTMAX), generator())
    size = sum(weights.numel() for weights in model.parameters())
    assert size == parameters_by_hand(V, 4, (5, 4), (0, 0))


def test_initial_weights_come_from_the_generator_alone():
    state = torch.get_rng_state()
    network = Network(**SHAPE)
    first, again, other = (AWDLSTM(V, network, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    bounds = {"embedding": 0.1, "head.bias": 0.0, "head.prior.weight": 4**-0.5}
    for number, units in enumerate((5, 6, 4)):
        for weights in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            bounds[f"layers.{number}.{weights}"] = units**-0.5
    for number, inputs in enumerate((5, 4)):
        for weights in ("weight", "bias"):
            bounds[f"head.latents.{number}.{weights}"] = inputs**-0.5
    assert first.state_dict().keys() == bounds.keys()
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
        assert weights.abs().max() <= bounds[name] * (1 + 1e-6)
        assert weights.abs().max() >= 0.5 * bounds[name]
        assert bounds[name] == 0 or not torch.equal(weights, other.state_dict()[name])


def squared_cv(totals):
    """(sd/mean)² with the sample's standard deviation."""
    mean = sum(totals) / len(totals)
    return sum((total - mean) ** 2 for total in totals) / (len(totals) - 1) / mean**2


ALL = {"embedding": 0.2, "input": 0.3, "hidden": 0.3, "output": 0.4, "latent": 0.3, "weight": 0.5}


def test_regularisation_is_the_sum_of_its_terms():
    model, encoded = encoded_by(
        {"dropout": ALL, "activation": 2.0, "temporal": 3.0, "balance": 5.0}
    )
    last, dropped = encoded.last.detach().numpy(), encoded.layers[-1].detach().numpy()
    prior = encoded.head[1].detach().exp().numpy()
    activation = 2 * np.mean(dropped**2)
    temporal = 3 * np.mean((last[1:] - last[:-1]) ** 2)
    balance = 5 * squared_cv(prior.reshape(-1, 3).sum(axis=0))
    assert min(activation, temporal, balance) > 1e-6
    assert model.regularisation(encoded).item() == pytest.approx(activation + temporal + balance)
    model.regularisation(encoded).backward()
    assert all(layer.weight_hh.grad.any() for layer in model.layers)


@given(weights=st.tuples(*[st.floats(0, 10)] * 3))
@settings(max_examples=20, deadline=None)
def test_each_coefficient_scales_its_own_term(weights):
    names = ("activation", "temporal", "balance")
    single = []
    for name in names:
        model, encoded = encoded_by({"dropout": ALL, name: 1.0})
        single.append(model.regularisation(encoded).item())
    model, encoded = encoded_by({"dropout": ALL} | dict(zip(names, weights, strict=True)))
    assert model.regularisation(encoded).item() == pytest.approx(np.dot(weights, single))


def test_one_step_has_no_temporal_term():
    model, encoded = encoded_by({"temporal": 3.0}, words=1)
    assert model.regularisation(encoded).item() == 0
    model, encoded = encoded_by({"temporal": 3.0, "activation": 2.0}, words=1)
    expected = 2 * encoded.last.pow(2).mean().item()
    assert model.regularisation(encoded).item() == pytest.approx(expected)


def test_without_regularisation_there_is_an_exact_zero():
    model, encoded = encoded_by({"dropout": ALL})
    total = model.regularisation(encoded)
    assert total.shape == ()
    assert total.item() == 0


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        ((1 / 3, 1 / 3, 1 / 3), 0.0),
        ((1.0, 1e-300, 1e-300), 3.0),  # one expert alone: K
        ((0.5, 0.25, 0.25), 0.1875),  # (1/6² + 2/12²) / 2 / (1/3)²
    ],
)
def test_the_balance_is_the_squared_coefficient_of_variation(prior, expected):
    model, encoded = encoded_by({"balance": 1.0})
    log_pi = torch.tensor(prior, dtype=torch.float64).log().expand(T, B, 3)
    encoded = encoded._replace(head=(encoded.head[0], log_pi))
    assert model.regularisation(encoded).item() == pytest.approx(expected, abs=1e-14)


def test_experts_that_take_turns_are_in_balance():
    """Totals over all tokens count, not single tokens."""
    model, encoded = encoded_by({"balance": 1.0}, words=6)
    turns = torch.eye(3, dtype=torch.float64).repeat(2, 1)[:, None].expand(6, B, 3)
    encoded = encoded._replace(head=(encoded.head[0], turns.log()))
    assert model.regularisation(encoded).item() == pytest.approx(0, abs=1e-15)


def test_blocks_must_leave_words_for_the_last_one():
    network = Network.model_validate(DIFFERENTIATED)
    assert block_sizes(V, network) == [3, V - 3]
    with pytest.raises(ValueError, match="have 3 words, which leaves none of 3 for the last"):
        block_sizes(3, network)


def test_a_network_is_known_by_what_its_head_uses():
    """Older trainings are found again: a head without blocks says nothing about them."""
    assert not {"blocks", "projected"} & Network.model_validate(SHAPE).key().keys()
    assert Network.model_validate(DIFFERENTIATED).key()["blocks"][0] == BLOCKS[0]
