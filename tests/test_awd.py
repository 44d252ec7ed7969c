"""AWD-LSTM against the formulas of an LSTM; what is dropped, and what is not."""

import pytest
import torch
from conftest import needs_bfloat16
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from paperlib.models import AWDLSTM
from paperlib.models import dropout as drop
from paperlib.models.recurrent import lstm
from paperlib.network import Dropout, Network

T, B, V = 5, 3, 9
SHAPE = {"head": "doc", "embedding": 4, "hidden": (5, 6, 4), "experts": (1, 0, 2)}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def new_model(seed=0, **options):
    network = Network.model_validate(SHAPE | options)
    return AWDLSTM(V, network, generator(seed)).double()


def some_words(seed=1):
    return torch.randint(V, (T, B), generator=generator(seed))


def sigmoid(x):
    return 1 / (1 + (-x).exp())


def lstm_by_the_formulas(weights, inputs, hidden, cell):
    """Outputs and last state of one layer, one step and one gate at a time."""
    outputs = []
    for x in inputs:
        gates = (
            x @ weights["weight_ih"].T
            + weights["bias_ih"]
            + hidden @ weights["weight_hh"].T
            + weights["bias_hh"]
        )
        i, f, g, o = gates.chunk(4, dim=-1)
        cell = sigmoid(f) * cell + sigmoid(i) * torch.tanh(g)
        hidden = sigmoid(o) * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs), (hidden, cell)


def by_the_formulas(model, words, state):
    """Outputs of all layers without dropout, and the state after the last word."""
    weights = dict(model.named_parameters())
    values, layers, after = weights["embedding"][words], [], []
    for number in range(len(model.network.hidden)):
        prefix = f"layers.{number}."
        own = {name.removeprefix(prefix): w for name, w in weights.items() if prefix in name}
        values, last = lstm_by_the_formulas(own, values, *state[2 * number : 2 * number + 2])
        layers.append(values)
        after += last
    return layers, after


def assert_same_gradients(model, values, expected):
    """Of all layers' outputs together, by the embedding and all weights of the LSTMs."""
    parameters = [model.embedding, *model.layers.parameters()]
    upstream = [torch.randn(v.shape, generator=generator(9), dtype=v.dtype) for v in expected]
    mine, theirs = (torch.autograd.grad(of, parameters, upstream) for of in (values, expected))
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
    assert all(gradient.any() for gradient in theirs)


def test_layers_of_different_sizes_are_lstms():
    model, words = new_model(), some_words()
    state = tuple(
        torch.randn(part.shape, generator=generator(2)).double() for part in model.start(B)
    )
    encoded, after = model.encode(words, state)
    layers, expected_after = by_the_formulas(model, words, state)
    for mine, expected in zip((*encoded.layers, *after), (*layers, *expected_after), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-13)
    assert_same_gradients(model, encoded.layers, layers)
    assert torch.equal(encoded.last, encoded.layers[-1])


def test_a_text_in_two_pieces_is_one_text():
    model, words = new_model(), some_words()
    whole, state = model.encode(words, model.start(B))
    first, between = model.encode(words[:2], model.start(B))
    second, after = model.encode(words[2:], between)
    pieces = torch.cat([model.log_q(first), model.log_q(second)])
    torch.testing.assert_close(pieces, model.log_q(whole))
    torch.testing.assert_close(after, state)
    assert not any(part.requires_grad for part in state)
    assert [tuple(part.shape) for part in model.start(B)] == [(B, n) for n in (5, 5, 6, 6, 4, 4)]
    assert not any(part.any() for part in model.start(B))


def test_streams_do_not_see_each_other():
    model, words = new_model(), some_words()
    together, _ = model.encode(words, model.start(B))
    alone, _ = model.encode(words[:, 1:2], model.start(1))
    torch.testing.assert_close(model.log_q(together)[:, 1:2], model.log_q(alone))


ALL = Dropout(embedding=0.2, input=0.3, hidden=0.3, output=0.4, latent=0.3, weight=0.5)


def test_dropout_happens_if_and_only_if_a_generator_is_given():
    model, plain, words = new_model(dropout=ALL), new_model(), some_words()
    expected = plain.log_q(plain.encode(words, plain.start(B))[0])
    for training in (True, False):
        model.train(training)
        log_q = model.log_q(model.encode(words, model.start(B))[0])
        assert torch.equal(log_q, expected)
        dropped = model.log_q(model.encode(words, model.start(B), generator())[0])
        assert (dropped != expected).all()


def test_dropout_draws_from_its_generator_alone():
    model, words = new_model(dropout=ALL), some_words()
    state = torch.get_rng_state()
    first, again, other = (
        model.log_q(model.encode(words, model.start(B), generator(seed))[0]) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert (first != other).all()
    assert torch.equal(torch.get_rng_state(), state)


KINDS = list(Dropout.model_fields)


@pytest.mark.parametrize("kind", KINDS)
def test_each_rate_alone_changes_the_output(kind):
    model, words = new_model(dropout={kind: 0.5}), some_words()
    plain, first, other = (
        model.log_q(model.encode(words, model.start(B), source)[0])
        for source in (None, generator(0), generator(1))
    )
    assert not torch.allclose(plain, first)
    assert not torch.allclose(first, other)


@given(rate=st.floats(0.05, 0.95), seed=st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_what_is_kept_is_scaled_to_the_same_mean(rate, seed):
    mask = drop.mask((40_000,), rate, generator(seed), torch.empty((), dtype=torch.float64))
    kept = mask > 0
    torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - rate)))
    # Six standard deviations of a mean of 40 000.
    assert kept.double().mean().item() == pytest.approx(
        1 - rate, abs=6 * (rate * (1 - rate)) ** 0.5 / 200
    )


def test_a_rate_that_rounds_to_one_drops_nearly_all():
    mask = drop.mask((40_000,), 1 - 2**-20, generator(0), torch.empty(()))
    assert (mask > 0).float().mean() < 1e-3


def test_units_are_dropped_independently_of_each_other():
    """Four come from one draw: every pattern of four is as frequent as any other."""
    kept = half_of(torch.empty(40_000, 4), generator(3)) > 0
    patterns = (kept * torch.tensor([1, 2, 4, 8])).sum(-1).bincount(minlength=16)
    assert stats.chisquare(patterns.numpy()).pvalue > 1e-4


def half_of(like, draws):
    """The mask of dropout at rate ½: zeros and twos."""
    return drop.mask(tuple(like.shape), 0.5, draws, like)


def test_weight_drop_is_an_lstm_with_those_weights_missing():
    model, words = new_model(dropout={"weight": 0.5}), some_words()
    encoded, _ = model.encode(words, model.start(B), generator(7))
    draws, thinned = generator(7), new_model()
    with torch.no_grad():
        for layer in thinned.layers:
            layer.weight_hh.mul_(half_of(layer.weight_hh, draws))
    expected, _ = by_the_formulas(thinned, words, model.start(B))
    for mine, theirs in zip(encoded.layers, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


def test_the_gradient_reaches_the_weights_that_were_not_dropped():
    model, words = new_model(dropout={"weight": 0.5}), some_words()
    encoded, _ = model.encode(words, model.start(B), generator(7))
    model.log_q_of(encoded, words).sum().backward()
    draws = generator(7)
    for layer in model.layers:
        kept = half_of(layer.weight_hh, draws).bool()
        assert kept.any()
        assert not kept.all()
        assert torch.equal(layer.weight_hh.grad != 0, kept)


def test_weight_drop_edits_no_parameter_and_survives_changes_of_mode():
    model, words = new_model(dropout=ALL), some_words()
    before = {name: values.clone() for name, values in model.state_dict().items()}
    optimizer, draws, losses = torch.optim.SGD(model.parameters(), lr=0.5), generator(), []
    for _ in range(3):
        model.train()
        encoded, _ = model.encode(words, model.start(B), draws)
        loss = -model.log_q_of(encoded, words).mean()
        optimizer.zero_grad()
        loss.backward()
        unchanged = model.state_dict()
        assert list(unchanged) == list(before)
        assert all(torch.equal(unchanged[name], before[name]) for name in before)
        optimizer.step()
        before = {name: values.clone() for name, values in model.state_dict().items()}
        model.eval()
        with torch.no_grad():
            encoded, _ = model.encode(words, model.start(B))
            losses.append(-model.log_q_of(encoded, words).mean().item())
    assert losses[0] > losses[1] > losses[2]


def zeros(values):
    """Which numbers were dropped: an LSTM or a tanh gives no exact zero of its own."""
    return values.detach() == 0


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        ("hidden", lambda encoded: torch.cat(encoded.layers[:-1], dim=-1)),
        ("output", lambda encoded: encoded.layers[-1]),
        ("latent", lambda encoded: encoded.head[0].flatten(2)),
    ],
)
def test_locked_dropout_is_constant_in_time_and_differs_between_streams(kind, dropped):
    model, words = new_model(dropout={kind: 0.5}), some_words()
    gone = zeros(dropped(model.encode(words, model.start(B), generator(1))[0]))
    assert torch.equal(gone, gone[:1].expand_as(gone))
    assert not torch.equal(gone[0, 0], gone[0, 1])
    assert gone.any()
    assert not gone.all()


def test_the_last_layer_is_kept_before_dropout_too():
    model, words = new_model(dropout={"output": 0.5}), some_words()
    encoded, _ = model.encode(words, model.start(B), generator(1))
    plain, _ = model.encode(words, model.start(B))
    assert torch.equal(encoded.last, plain.last)
    kept = ~zeros(encoded.layers[-1])
    torch.testing.assert_close(encoded.layers[-1], 2 * plain.last * kept)


def test_input_dropout_is_locked_and_acts_on_the_first_layers_input():
    model, words = new_model(dropout={"input": 0.5}), some_words()
    encoded, _ = model.encode(words, model.start(B), generator(1))
    inputs = half_of(torch.empty(1, B, 4).double(), generator(1)) * model.embedding.detach()[words]
    hidden = torch.zeros(B, 5, dtype=torch.float64)
    expected, _ = lstm_by_the_formulas(model.layers[0].state_dict(), inputs, hidden, hidden)
    torch.testing.assert_close(encoded.layers[0].detach(), expected, rtol=0, atol=1e-13)


def test_embedding_dropout_drops_words_wherever_they_are():
    words = some_words()
    values = torch.rand(V, 4, generator=generator(2), dtype=torch.float64)[words] + 1
    dropped = drop.words(values, words, V, 0.5, generator(5))
    scale = dropped / values
    fate = torch.full((V,), -1.0, dtype=torch.float64)
    fate[words.flatten()] = scale[..., 0].flatten()
    torch.testing.assert_close(scale, fate[words].unsqueeze(-1).expand_as(scale))
    assert set(fate.unique().round(decimals=9).tolist()) - {-1.0} == {0.0, 2.0}


def test_embedding_dropout_acts_on_the_lookup_alone():
    model, words = new_model(dropout={"embedding": 0.5}), some_words()
    encoded, _ = model.encode(words, model.start(B), generator(5))
    latents, log_pi = encoded.head
    logits = latents @ model.embedding.T + model.head.bias
    expected = (logits.log_softmax(-1) + log_pi.unsqueeze(-1)).logsumexp(2)
    torch.testing.assert_close(model.log_q(encoded), expected)
    assert not torch.allclose(encoded.last, model.encode(words, model.start(B))[0].last)


@needs_bfloat16
def test_bfloat16_is_for_the_recurrent_layers_alone():
    model, words = new_model().float(), some_words()
    exact = model.log_q(model.encode(words, model.start(B))[0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        encoded, state = model.encode(words, model.start(B))
    rounded = model.log_q(encoded)
    assert {part.dtype for part in (*encoded.layers, *encoded.head, *state)} == {torch.float32}
    torch.testing.assert_close(rounded.exp().sum(-1), torch.ones(T, B))
    assert 0 < (exact - rounded).abs().max() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_gpu_rounds_to_bfloat16_where_gradients_do_not_vanish():
    layer = nn.LSTM(4, 5).cuda()
    inputs = torch.rand(3, 2, 4, device="cuda")
    zeros = torch.zeros(1, 2, 5, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        outputs, *_ = lstm(inputs, (zeros, zeros), list(layer.parameters()))
    assert outputs.dtype == torch.bfloat16
    (1e-9 * outputs.sum()).backward()  # float16 has nothing between 0 and 6e-8
    assert layer.weight_ih_l0.grad.abs().max() > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_gpu_computes_the_same():
    words, results = some_words(), []
    for device in ("cpu", "cuda"):
        model = new_model().to(device)
        encoded, _ = model.encode(words.to(device), model.start(B))
        results.append([model.log_q(encoded).cpu(), *(part.cpu() for part in model.log_r(encoded))])
    torch.testing.assert_close(results[1], results[0])
