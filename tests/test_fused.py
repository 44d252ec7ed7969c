"""The sums over the vocabulary against plain PyTorch, where all logits are held at once."""

import weakref

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from paperlib import hardware
from paperlib.models import AWDLSTM, fused
from paperlib.network import Network

ROWS, K, V, E = 7, 3, 11, 4
LARGE = 1 << 25

no_gpu_skips = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
on_a_gpu = [pytest.mark.gpu, no_gpu_skips]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_log_softmax(latents, embedding, bias, target):
    log_q = (latents @ embedding.T + bias).log_softmax(-1)
    return log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)


def plain_expectation(latents, log_pi, embedding, bias, log_q0):
    log_r = (F.logsigmoid(latents @ embedding.T + bias) + log_pi.unsqueeze(-1)).logsumexp(1)
    return -(log_q0.exp() * log_r).sum(-1)


FUNCTIONS = {
    "softmax": (fused.target_log_softmax, plain_log_softmax),
    "sigmoid": (fused.sigmoid_mixture_expectation, plain_expectation),
}


def arguments(kind, rows=ROWS, experts=K, words=V, dtype=torch.float64):
    """What is differentiated, and the last argument, which is not."""
    draws = generator(1)

    def draw(*shape):
        return torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)

    output = [draw(words, E), draw(words)]
    if kind == "softmax":
        return [draw(rows, E), *output], torch.randint(words, (rows,), generator=draws)
    mixture = [draw(rows, experts, E), draw(rows, experts).log_softmax(-1)]
    return [*mixture, *output], draw(rows, words).log_softmax(-1)


def differentiable(parts):
    return [part.detach().clone().requires_grad_() for part in parts]


# Chunks of 100 logits leave fewer rows for the last one.
CHUNKS = [(1 << 20, LARGE), (1 << 20, 0), (100, LARGE), (100, 0), (1, LARGE), (1, 0)]
# Room for the first chunk alone, or for the first rows.
CHUNKS += [(100, 8 * 100), (1, 8 * 3 * K * V)]


@pytest.mark.parametrize(("chunk", "keep"), CHUNKS)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_chunks_kept_or_computed_again_change_nothing(kind, chunk, keep, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", chunk)
    monkeypatch.setattr(fused, "LEAST", 1)
    monkeypatch.setattr(fused, "KEEP", keep)
    parts, last = arguments(kind)
    upstream = torch.randn(ROWS, generator=generator(2), dtype=torch.float64)
    results = []
    for function in FUNCTIONS[kind]:
        inputs = differentiable(parts)
        value = function(*inputs, last)
        results.append([value, *torch.autograd.grad(value, inputs, upstream)])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("keep", [0, LARGE])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_any_one_input_can_be_differentiated_alone(kind, keep, monkeypatch):
    monkeypatch.setattr(fused, "KEEP", keep)
    parts, last = arguments(kind)
    function, plain = FUNCTIONS[kind]
    for number in range(len(parts)):
        gradients = []
        for of in (function, plain):
            inputs = [*parts]
            [inputs[number]] = differentiable([parts[number]])
            gradients += torch.autograd.grad(of(*inputs, last).sum(), inputs[number])
        torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("keep", [0, LARGE])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_rows_without_gradient_count_for_nothing(kind, keep, monkeypatch):
    monkeypatch.setattr(fused, "KEEP", keep)
    parts, last = arguments(kind)
    function, _ = FUNCTIONS[kind]
    inputs = differentiable(parts)
    function(*inputs, last)[:2].sum().backward()
    by_rows = inputs[:-2]
    for part in by_rows:
        assert part.grad[:2].all()
        assert not part.grad[2:].any()
    few = differentiable([part[:2] for part in parts[: len(by_rows)]] + parts[-2:])
    function(*few, last[:2]).sum().backward()
    for mine, expected in zip(inputs[-2:], few[-2:], strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_second_gradient_is_refused_where_the_first_has_used_up_what_was_kept(kind):
    parts, last = arguments(kind)
    inputs = differentiable(parts)
    value = FUNCTIONS[kind][0](*inputs, last).sum()
    torch.autograd.grad(value, inputs, retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated only once"):
        torch.autograd.grad(value, inputs)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_second_gradient_is_the_first_where_nothing_is_kept(kind, monkeypatch):
    monkeypatch.setattr(fused, "KEEP", 0)
    parts, last = arguments(kind)
    inputs = differentiable(parts)
    value = FUNCTIONS[kind][0](*inputs, last).sum()
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(value, inputs)))


@pytest.mark.parametrize("keep", [0, LARGE])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_gradient_of_the_gradient_is_refused(kind, keep, monkeypatch):
    monkeypatch.setattr(fused, "KEEP", keep)
    parts, last = arguments(kind)
    inputs = differentiable(parts)
    value = FUNCTIONS[kind][0](*inputs, last).sum()
    with pytest.raises(RuntimeError, match="can be differentiated only once"):
        torch.autograd.grad(value, inputs, create_graph=True)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_weights_that_changed_before_the_gradient_are_noticed(kind, monkeypatch):
    monkeypatch.setattr(fused, "KEEP", 0)
    parts, last = arguments(kind)
    inputs = differentiable(parts)
    value = FUNCTIONS[kind][0](*inputs, last).sum()
    with torch.no_grad():
        inputs[-1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def log_r_by_the_definition(logits, log_pi):
    """log Σ_k π_k σ(logit_k) ``(V,)`` in float64, where e^200 is a plain number."""
    return (log_pi.unsqueeze(-1) - torch.log1p((-logits).exp())).logsumexp(0)


DTYPES = [torch.float32, torch.float64]
EPSILON = torch.finfo(torch.float32).eps
LOGITS = st.lists(st.floats(-200, 200, width=32), min_size=4, max_size=4)


@given(
    logits=st.lists(LOGITS, min_size=2, max_size=2),
    rare=st.floats(-300, 0, width=32),
    log_q0=LOGITS,
    keep=st.sampled_from([0, LARGE]),
)
@settings(max_examples=60, deadline=None)
def test_extremes_in_float32_are_those_of_float64(logits, rare, log_q0, keep):
    """Logits of ±200 and experts of weight e^-300, value and gradient."""
    log_pi = torch.tensor([0, rare]).log_softmax(-1)
    logits, log_q0 = torch.tensor(logits), torch.tensor(log_q0).log_softmax(-1)
    mine, theirs = (differentiable(p.to(d) for p in (logits, log_pi)) for d in DTYPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "KEEP", keep)
        value = fused.sigmoid_mixture_expectation(
            mine[0][None], mine[1][None], torch.eye(4), torch.zeros(4), log_q0[None]
        )
        gradients = torch.autograd.grad(value, mine)
    expected = -(log_q0.double().exp() * log_r_by_the_definition(*theirs)).sum()
    torch.testing.assert_close(value[0].double(), expected, rtol=1e-5, atol=1e-6)
    for found, gradient in zip(gradients, torch.autograd.grad(expected, theirs), strict=True):
        torch.testing.assert_close(found.double(), gradient, rtol=1e-5, atol=1e-6)


@given(
    logits=st.lists(LOGITS, min_size=3, max_size=3),
    target=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    keep=st.sampled_from([0, LARGE]),
)
@settings(max_examples=60, deadline=None)
def test_extremes_of_the_softmax_in_float32_are_those_of_float64(logits, target, keep):
    """Logits of ±200, value and gradients by latents, embedding and bias."""
    parts = torch.tensor(logits), torch.eye(4), torch.zeros(4)
    target = torch.tensor(target)
    mine, theirs = (differentiable(part.to(dtype) for part in parts) for dtype in DTYPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "KEEP", keep)
        value = fused.target_log_softmax(*mine, target)
        gradients = torch.autograd.grad(value.sum(), mine)
    expected = plain_log_softmax(*theirs, target)
    torch.testing.assert_close(value.double(), expected, rtol=4 * EPSILON, atol=4 * EPSILON)
    of_embedding = 200 * len(logits)  # what its terms add up to at the most
    exact = torch.autograd.grad(expected.sum(), theirs)
    for found, gradient, size in zip(gradients, exact, (1, of_embedding, len(logits)), strict=True):
        torch.testing.assert_close(found.double(), gradient, rtol=0, atol=8 * EPSILON * size)


@pytest.mark.parametrize("keep", [0, LARGE])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_in_float32_gradients_are_those_of_float64_within_its_limits(kind, keep, monkeypatch):
    monkeypatch.setattr(fused, "KEEP", keep)
    monkeypatch.setattr(fused, "CHUNK", 10_000)
    parts, last = arguments(kind, rows=200, words=1000, dtype=torch.float32)
    results = []
    for function, dtype in zip(FUNCTIONS[kind], DTYPES, strict=True):
        inputs = differentiable(part.to(dtype) for part in parts)
        value = function(*inputs, last.to(dtype) if last.is_floating_point() else last)
        results.append([value.detach(), *torch.autograd.grad(value.sum(), inputs)])
    for found, exact in zip(*results, strict=True):
        assert (found.double() - exact).norm() < 10 * EPSILON * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tails_of_the_softmax_are_exact(dtype):
    """Down to q = e^-400, which is no number in either dtype but a log-probability as any other."""
    logits = torch.tensor([[-200.0, 200, 0, 61.5], [-140, -2, -3, 0], [0, 0, 0, 0]], dtype=dtype)
    for word in range(4):
        unit, zero = torch.eye(4, dtype=dtype), torch.zeros(4, dtype=dtype)
        found = fused.target_log_softmax(logits, unit, zero, torch.full((3,), word))
        expected = logits.double()[:, word] - logits.double().exp().sum(-1).log()
        # The plain formula itself loses what is far below one: 0 for the likely word.
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-12)


def test_the_branch_for_tiny_sums_is_the_plain_one_where_both_hold(monkeypatch):
    """One word below the threshold sends all of its chunk through log space."""
    monkeypatch.setattr(fused, "CHUNK", 1 << 20)
    monkeypatch.setattr(fused, "LEAST", 1)
    parts, log_q0 = arguments("sigmoid")
    latents, log_pi, embedding, bias = parts
    log_q0[:, 0] = -torch.inf  # the word itself is not in the sum
    rare = bias.clone()
    rare[0] = -150
    results = []
    for own_bias in (bias, rare):
        inputs = differentiable([latents, log_pi])
        value = fused.sigmoid_mixture_expectation(*inputs, embedding, own_bias, log_q0)
        results.append([value, *torch.autograd.grad(value.sum(), inputs)])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-13)


class Allocated(TorchDispatchMode):
    """Numbers in the largest tensor made inside, and in all that were alive together."""

    def __init__(self):
        super().__init__()
        self.largest, self.peak, self._alive = 0, 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                size = storage.nbytes() // tensor.itemsize
                self.largest = max(self.largest, size)
                if storage._cdata not in self._alive:
                    self._alive[storage._cdata] = size
                    weakref.finalize(storage, self._alive.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._alive.values()))
        return made


def allocated(kind, keep, monkeypatch, with_gradient=True):
    """Largest tensor and peak of value and gradient, over all logits; a chunk is 1/32 of them."""
    rows, experts, words = 32, 24, 500
    monkeypatch.setattr(fused, "CHUNK", experts * words)
    monkeypatch.setattr(fused, "LEAST", 1)
    monkeypatch.setattr(fused, "KEEP", keep)
    parts, last = arguments(kind, rows * experts if kind == "softmax" else rows, experts, words)
    inputs = differentiable(parts)
    with torch.set_grad_enabled(with_gradient), Allocated() as memory:
        value = FUNCTIONS[kind][0](*inputs, last)
        if with_gradient:
            value.sum().backward()
    return memory.largest / (rows * experts * words), memory.peak / (rows * experts * words)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_all_logits_are_held_only_where_they_are_few(kind, monkeypatch):
    largest, peak = allocated(kind, 0, monkeypatch)
    assert largest < 0.05
    assert peak < 0.5
    _, peak = allocated(kind, LARGE, monkeypatch)
    assert peak > 1


OF_TARGET = ("log_q_of", "log_odds_of", "discriminator_loss")
# Gradients of all words would need the logits of all words.
READINGS = [(name, False) for name in ("log_q", "log_r", *OF_TARGET)]


@pytest.mark.parametrize(("reading", "with_gradient"), READINGS + [(n, True) for n in OF_TARGET])
def test_no_reading_of_a_mixture_holds_all_logits(reading, with_gradient, monkeypatch):
    experts, words = 24, 500
    monkeypatch.setattr(fused, "CHUNK", experts * words)
    monkeypatch.setattr(fused, "LEAST", 1)
    monkeypatch.setattr(fused, "KEEP", 0)
    network = Network(head="mos", embedding=E, hidden=(6,), experts=(experts,))
    model = AWDLSTM(words, network, generator())
    text = torch.randint(words, (8, 4), generator=generator(1))
    encoded, _ = model.encode(text, model.start(4))
    log_q0 = torch.full((8, 4, words), 1 / words).log()
    arguments = {"log_q": (), "log_r": (), "discriminator_loss": (log_q0, text)}
    with torch.set_grad_enabled(with_gradient), Allocated() as memory:
        values = getattr(model, reading)(encoded, *arguments.get(reading, (text,)))
        if with_gradient:
            sum(value.sum() for value in values).backward()
    assert memory.peak < 0.5 * text.numel() * experts * words


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_nothing_is_kept_without_gradients(kind, monkeypatch):
    """Also of parameters, which ask for a gradient all the same."""
    largest, peak = allocated(kind, LARGE, monkeypatch, with_gradient=False)
    assert largest < 0.05
    assert peak < 0.25


def test_chunks_cover_all_rows_and_are_neither_too_small_nor_too_large(monkeypatch):
    monkeypatch.setattr(fused, "CHUNK", 10_000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    device = torch.device("cpu")
    for rows, words, experts in ((1000, 20, 1), (1000, 20, 5), (1000, 5000, 1), (1000, 5000, 5)):
        parts = list(fused._chunks(rows, words, device, experts))
        covered = [row for part in parts for row in range(part.start, part.stop)]
        assert covered == list(range(rows))
        latents = (parts[0].stop - parts[0].start) * experts
        assert latents >= fused.LEAST
        assert latents * words <= max(10_000, (fused.LEAST + experts) * words)


def test_on_a_gpu_a_twentieth_of_all_logits_three_times_is_enough():
    """At the shape of a batch of Penn Treebank: 840 tokens, 15 experts, 10 000 words."""
    rows, experts, words = 840, 15, 10_000
    first = next(fused._chunks(rows, words, torch.device("cuda"), experts))
    chunk = (first.stop - first.start) * experts * words * 4
    assert chunk < 0.05 * 3 * 4 * rows * experts * words


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_a_gpu)])
@pytest.mark.parametrize(
    ("dtype", "rounded", "limit"),
    [
        (torch.float64, False, 20 * torch.finfo(torch.float64).eps),
        (torch.float32, False, 20 * EPSILON),
        (torch.float32, True, 1e-2),
    ],
)
@pytest.mark.parametrize("words", [V, 3000, 3001])
@pytest.mark.parametrize("keep", [0, fused.KEEP])
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_every_device_computes_the_same_sums(
    kind, keep, words, dtype, rounded, limit, device, monkeypatch
):
    monkeypatch.setattr(fused, "GPU_CHUNK", 20 * words)
    monkeypatch.setattr(fused, "KEEP", keep)
    parts, last = arguments(kind, rows=50, words=words)
    function, plain = FUNCTIONS[kind]
    reference = differentiable(parts)
    exact = plain(*reference, last)
    expected = [exact.detach(), *torch.autograd.grad(exact.sum(), reference)]
    inputs = differentiable(part.to(device, dtype) for part in parts)
    last = last.to(device, dtype if last.is_floating_point() else None)
    with hardware.rounded_products(rounded):
        value = function(*inputs, last)
        found = [value.detach(), *torch.autograd.grad(value.sum(), inputs)]
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu().double() - other).norm() < limit * other.norm()


@pytest.mark.gpu
@no_gpu_skips
def test_a_gpu_finds_all_words_of_a_mixture_in_log_space():
    latents, log_pi, embedding, bias = (part.cuda() for part in arguments("sigmoid")[0])
    bias[3] -= 800.0  # e^-800 is no number
    expected = (latents @ embedding.T + bias).log_softmax(-1) + log_pi.unsqueeze(-1)
    with torch.no_grad():
        found = fused.mixture_log_softmax(latents, log_pi, embedding, bias)
    torch.testing.assert_close(found, expected.logsumexp(1))
