"""What the kernels of a GPU compute, by Triton's interpreter on a CPU.

A program for test_kernels.py. It prints, as JSON, the error of each result relative to plain
PyTorch in float64.

    TRITON_INTERPRET=1 python -m tests.interpreted
"""

import json

import torch
import torch.nn.functional as F

from paperlib import hardware
from paperlib.models import fused, kernels

ROWS, K, V, E = 6, 3, 11, 4
WIDTH = 16
"""Of a row of logits: what follows the V-th fills it up."""

DTYPES = {
    "float64": (torch.float64, False),
    "float32": (torch.float32, False),
    "rounded": (torch.float32, True),
}

CASTS = [(torch.float64, torch.float64), (torch.float32, torch.bfloat16)]
"""Dtypes of logits, and of what a kernel puts in their place or beside them."""


class Draws:
    """Random arguments in float64; RARE is a word that is too rare for a plain sum."""

    RARE = 3

    def __init__(self):
        generator = torch.Generator().manual_seed(1)

        def draw(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.latents, self.log_pi = draw(ROWS, K, E), draw(ROWS, K).log_softmax(-1)
        self.embedding, self.bias = draw(V, E), draw(V)
        self.target = torch.randint(V, (ROWS,), generator=generator)
        self.log_q0, self.upstream = draw(ROWS, V).log_softmax(-1), draw(ROWS)
        self.bias[self.RARE] -= 800.0


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference relative to that of what is ``expected``."""
    return float((found.double() - expected).norm() / expected.norm())


def products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """As a GPU multiplies: bfloat16 factors, sums and result in float32."""
    if torch.bfloat16 not in (left.dtype, right.dtype):
        return left @ right
    return left.bfloat16().float() @ right.bfloat16().float()


def alone(draws: Draws) -> dict[str, float]:
    """Each kernel by itself, of logits in rows that are filled up with what must not be read."""
    z, bias, log_pi = draws.latents, draws.bias, draws.log_pi
    plain = z @ draws.embedding.T

    def filled():
        return F.pad(plain, (0, WIDTH - V), value=float("nan"))

    logits = plain + bias
    rows = logits.flatten(0, 1)
    largest, total = kernels.largest_and_total(filled().flatten(0, 1), bias)
    errors = {
        "largest": error(largest, rows.amax(-1)),
        "total": error(total, (rows - rows.amax(-1, keepdim=True)).exp().sum(-1)),
    }
    for of, to in CASTS:
        given = (part.to(of) for part in (filled().flatten(0, 1), bias, largest))
        found = kernels.exponentials(*given, to)
        assert not found[:, V:].any(), "what fills up a row counts for nothing"
        exact = (rows - largest.unsqueeze(-1)).exp()
        errors[f"exponentials, {to}"] = error(found[:, :V], exact)
    mixture = (logits.log_softmax(-1) + log_pi.unsqueeze(-1)).logsumexp(1)
    errors["mixture"] = error(kernels.mixture(filled(), bias, log_pi), mixture)

    inputs = [logits.clone().requires_grad_(), log_pi.clone().requires_grad_()]
    exact = plain_expectation(*inputs, draws.log_q0)
    expected = [exact.detach(), *torch.autograd.grad(exact.sum(), inputs)]
    for of, to in CASTS:
        given = (part.to(of) for part in (filled(), bias, log_pi, draws.log_q0))
        value, of_logits, of_log_pi = kernels.sigmoid_mixture(*given, to)
        assert not of_logits[..., V:].any(), "what fills up a row has no gradient"
        found = (value, of_logits[..., :V], of_log_pi)
        for name, one, other in zip(
            ("value", "of logits", "of log π"), found, expected, strict=True
        ):
            errors[f"sigmoid mixture, {to}, {name}"] = error(one, other)
    value, *gradients = kernels.sigmoid_mixture(filled(), bias, log_pi, draws.log_q0, None)
    assert gradients == [None, None]
    errors["sigmoid mixture without gradients"] = error(value, expected[0])
    return errors


def plain_expectation(logits, log_pi, log_q0):
    return -(log_q0.exp() * (F.logsigmoid(logits) + log_pi.unsqueeze(-1)).logsumexp(1)).sum(-1)


def plain_mixture(latents, log_pi, embedding, bias):
    return ((latents @ embedding.T + bias).log_softmax(-1) + log_pi.unsqueeze(-1)).logsumexp(1)


def in_chunks(draws: Draws, dtype: torch.dtype, rounded: bool) -> dict[str, float]:
    """The sums of paperlib.models.fused as a GPU does them, with all gradients."""
    rows = draws.latents[:, 0]
    output = [draws.embedding, draws.bias]
    cases = {
        "log softmax": (
            lambda z, w, b: fused.target_log_softmax(z, w, b, draws.target),
            lambda z, w, b: (z @ w.T + b).log_softmax(-1)[torch.arange(ROWS), draws.target],
            [rows, *output],
        ),
        "normaliser": (
            fused.log_normaliser,
            lambda z, w, b: (z @ w.T + b).logsumexp(-1),
            [rows, *output],
        ),
        "expectation": (
            lambda *given: fused.sigmoid_mixture_expectation(*given, draws.log_q0.to(dtype)),
            lambda z, pi, w, b: plain_expectation(z @ w.T + b, pi, draws.log_q0),
            [draws.latents, draws.log_pi, *output],
        ),
    }
    errors = {}
    for name, (function, plain, arguments) in cases.items():
        results = []
        for of, kind in ((function, dtype), (plain, torch.float64)):
            inputs = [part.to(kind).clone().requires_grad_() for part in arguments]
            with hardware.rounded_products(rounded and of is function):
                value = of(*inputs)
                gradients = torch.autograd.grad(value, inputs, draws.upstream.to(kind))
            results.append([value.detach(), *gradients])
        for number, (found, expected) in enumerate(zip(*results, strict=True)):
            errors[f"{name}, result {number}"] = error(found, expected)
    mixed = [draws.latents, draws.log_pi, *output]
    with torch.no_grad(), hardware.rounded_products(rounded):
        found = fused.mixture_log_softmax(*(part.to(dtype) for part in mixed))
    errors["mixture"] = error(found, plain_mixture(*mixed))
    return errors


def main() -> None:
    torch.set_num_threads(1)
    kernels.BLOCK = 8  # so that words fill more than one
    # A CPU takes the way of a GPU: with kernels, with its products, and nothing is kept.
    fused._kernels = lambda _latents: kernels
    fused._kept_rows = lambda *_: 0
    fused.multiply = products
    fused.CHUNK, fused.LEAST = 2 * K * V, 1  # two tokens, so that there are several chunks
    draws = Draws()
    errors = {"alone": alone(draws)}
    for name, (dtype, rounded) in DTYPES.items():
        errors[name] = in_chunks(draws, dtype, rounded)
    print(json.dumps(errors))


if __name__ == "__main__":
    main()
