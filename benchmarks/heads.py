"""The output head of a mixture: its training step as language model and as discriminator.

Forward and backward of the head alone, from latent vectors to gradients. The published formulation
takes the softmax of every expert, their weighted sum and its logarithm, and is also tried under
``torch.compile`` where there is a compiler; the plain discriminator holds q_0, log r of all words
and their product.
"""

import functools
import os
import shutil
import sysconfig
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import PRECISIONS, Benchmark, Case, Work, precision, precision_name
from paperlib import hardware
from paperlib.models import fused

SHAPE = {"tokens": 840, "experts": 15, "words": 10_000, "width": 280}
"""A batch of the published recipe on Penn Treebank: 12 streams of 70 words."""


class Head:
    """Random latents, mixture weights, embedding, target and q_0 of one shape."""

    def __init__(self, tokens: int, experts: int, words: int, width: int, mixed: bool):
        device, generator = hardware.device(), torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(device)

        self.latents = draw(tokens, experts, width).tanh().requires_grad_()
        self.log_pi = draw(tokens, experts).log_softmax(-1).requires_grad_()
        self.embedding = (0.1 * draw(words, width)).requires_grad_()
        self.bias = torch.zeros(words, device=device, requires_grad=True)
        self.target = torch.randint(words, (tokens,), generator=generator).to(device)
        self.log_q0 = draw(tokens, words).log_softmax(-1)
        self.mixed = mixed
        self.tokens = tokens
        # Three products of the logits' size; all that is differentiated is read, and its gradient
        # written.
        read = sum(part.numel() for part in self.inputs)
        self.work = Work(3 * 2 * tokens * experts * words * width, 4 * 2 * read, mixed)
        self.work_with_q0 = Work(
            self.work.operations, self.work.moved + 4 * self.log_q0.numel(), mixed
        )

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """All that is differentiated."""
        return self.latents, self.log_pi, self.embedding, self.bias

    def gradients(self, loss: Tensor) -> tuple[Tensor, ...]:
        """By all inputs."""
        return torch.autograd.grad(loss, self.inputs, allow_unused=True)

    def model(self) -> tuple[Tensor, ...]:
        """Cross-entropy, as the library does it."""
        with hardware.rounded_products(self.mixed):
            target = self.target.unsqueeze(-1).expand(self.log_pi.shape).flatten()
            rows = self.latents.flatten(0, 1)
            of_experts = fused.target_log_softmax(rows, self.embedding, self.bias, target)
            log_q = torch.logsumexp(of_experts.view(self.log_pi.shape) + self.log_pi, dim=-1)
            return self.gradients(-log_q.mean())

    def model_published(self, mixed: bool, loss_of: Callable | None = None) -> tuple[Tensor, ...]:
        """Softmax of every expert, weighted sum, logarithm."""
        with precision(mixed):
            loss = (loss_of or published_loss)(*self.inputs, self.target)
        return self.gradients(loss)

    def discriminator(self) -> tuple[Tensor, ...]:
        """D^(q), as the library does it."""
        with hardware.rounded_products(self.mixed):
            arguments = (self.latents, self.log_pi, self.embedding, self.bias, self.log_q0)
            return self.gradients(fused.sigmoid_mixture_expectation(*arguments).mean())

    def discriminator_plain(self, mixed: bool) -> tuple[Tensor, ...]:
        """D^(q) from q_0, log r of all words and their product."""
        with precision(mixed):
            log_sigmoid = F.logsigmoid(F.linear(self.latents, self.embedding, self.bias))
            log_r = torch.logsumexp(log_sigmoid + self.log_pi.unsqueeze(-1), dim=1)
            loss = -(self.log_q0.exp() * log_r).sum(-1).mean()
        return self.gradients(loss)


def published_loss(
    latents: Tensor, log_pi: Tensor, embedding: Tensor, bias: Tensor, target: Tensor
) -> Tensor:
    """Cross-entropy from the softmax of every expert, as the published code computes it."""
    softmax = F.linear(latents, embedding, bias).softmax(-1)
    q = (softmax * log_pi.exp().unsqueeze(-1)).sum(1)
    return F.nll_loss(q.add(1e-8).log(), target)


@functools.cache
def compiled_loss() -> Callable:
    """The same, compiled when it is first called."""
    return torch.compile(published_loss, dynamic=False)


def can_compile() -> bool:
    """Whether ``torch.compile`` finds what it needs: a C++ compiler, and for a GPU Triton.

    And itself: it tells the compiler where PyTorch lies, without quotes, so that a space ends it.
    """
    header = Path(sysconfig.get_path("include")) / "Python.h"
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if torch.cuda.is_available() and find_spec("triton") is None:
        return False
    return compiler is not None and header.is_file() and " " not in torch.__file__


def model(mixed: bool = False, alternatives: bool = True, **shape: int) -> Case:
    """The language model's head."""
    head = Head(**(SHAPE | shape), mixed=mixed)
    ways = {"ours": head.model}
    if alternatives:
        ways |= _plain("published formulation", head.model_published, mixed)
    if alternatives and can_compile():
        ways["published formulation, torch.compile"] = lambda: head.model_published(
            mixed, compiled_loss()
        )
    return Case(ways, head.work, tokens=head.tokens)


def discriminator(mixed: bool = False, alternatives: bool = True, **shape: int) -> Case:
    """The discriminator's head."""
    head = Head(**(SHAPE | shape), mixed=mixed)
    ways = {"ours": head.discriminator}
    if alternatives:
        ways |= _plain("plain autograd", head.discriminator_plain, mixed)
    return Case(ways, head.work_with_q0, tokens=head.tokens)


def _plain(name: str, way: Callable[[bool], object], mixed: bool) -> dict:
    ways = {name: lambda: way(mixed)}
    if mixed:
        ways[f"{name}, float32"] = lambda: way(False)
    return ways


BENCHMARKS = [
    Benchmark(
        f"{subject}, {precision_name(mixed)}",
        f"840 tokens, {experts} experts, 10 000 words, width 280",
        build,
        {"experts": experts, "mixed": mixed},
        repeats=3,
    )
    for subject, build, all_experts in (
        ("mixture step", model, (15, 20)),
        ("mixture discriminator step", discriminator, (15,)),
    )
    for experts in all_experts
    for mixed in PRECISIONS
]
