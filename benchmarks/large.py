"""A large vocabulary: the step of a differentiated softmax beside that of a full one (section 4.3).

Forward and backward of the head alone for 100 000 words, from the last layer's 500 units to
gradients. The full softmax reads all 500 units for every word; the blocks of the differentiated
one read 150 for the most frequent words and 16 for the rarest.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import PRECISIONS, Benchmark, Case, Work, precision, precision_name
from paperlib import hardware
from paperlib.models import fused
from paperlib.models.differentiated import Differentiated
from paperlib.network import Network

UNITS = (150, 120, 94, 64, 40, 16, 16)
"""Of the blocks: 500 in all, from the paper's 150 to its 16."""

SHARES = (0.02, 0.04, 0.08, 0.12, 0.18, 0.26)
"""Of the vocabulary, in all blocks but the last."""


class Heads:
    """A differentiated and a full softmax, and what they read, of one shape."""

    def __init__(self, tokens: int, words: int, mixed: bool):
        device, generator = hardware.device(), torch.Generator().manual_seed(0)
        blocks = [
            {"words": int(share * words), "units": units}
            for share, units in zip(SHARES, UNITS, strict=False)
        ]
        network = Network(
            head="differentiated",
            embedding=16,
            hidden=(sum(UNITS),),
            blocks=[*blocks, {"units": UNITS[-1]}],
        )
        self.head = Differentiated(words, network)
        with torch.no_grad():
            self.head.initialise(generator)
        self.head.to(device)
        hidden = torch.randn(1, tokens, sum(UNITS), generator=generator).tanh()
        self.hidden = hidden.to(device).requires_grad_()
        self.weights = 0.1 * torch.randn(words, sum(UNITS), generator=generator).to(device)
        self.weights.requires_grad_()
        self.bias = torch.zeros(words, device=device, requires_grad=True)
        # As often as a language has it, rare words being rare.
        ranks = torch.rand(1, tokens, generator=generator).mul(torch.tensor(words).log()).exp()
        self.target = ranks.long().clamp(max=words - 1).to(device)
        self.mixed = mixed
        entries = sum(
            size * units for size, units in zip(self.head.words, self.head.units, strict=True)
        )
        self.tokens = tokens
        # What is differentiated is read, and its gradient written.
        read = entries + words + self.hidden.numel()
        self.work = Work(3 * 2 * tokens * entries, 4 * 2 * read, mixed)

    def differentiated(self) -> tuple[Tensor, ...]:
        """Cross-entropy of the differentiated softmax, as the library does it."""
        with hardware.rounded_products(self.mixed):
            head = self.head.prepare((self.hidden,), None)
            loss = -self.head.log_q_of(head, None, self.target).mean()
            return torch.autograd.grad(loss, (self.hidden, *self.head.parameters()))

    def full(self) -> tuple[Tensor, ...]:
        """Cross-entropy of a full softmax, as the library does it."""
        with hardware.rounded_products(self.mixed):
            rows, target = self.hidden.flatten(0, 1), self.target.flatten()
            loss = -fused.target_log_softmax(rows, self.weights, self.bias, target).mean()
            return torch.autograd.grad(loss, (self.hidden, self.weights, self.bias))

    def plain(self, mixed: bool) -> tuple[Tensor, ...]:
        """The same from all logits at once."""
        with precision(mixed):
            logits = F.linear(self.hidden.flatten(0, 1), self.weights, self.bias)
            loss = F.cross_entropy(logits, self.target.flatten())
        return torch.autograd.grad(loss, (self.hidden, self.weights, self.bias))


def step(mixed: bool = False, alternatives: bool = True, **shape: int) -> Case:
    """The language model's head."""
    heads = Heads(**({"tokens": 512, "words": 100_000} | shape), mixed=mixed)
    ways: dict[str, Callable[[], object]] = {"ours": heads.differentiated}
    if alternatives:
        ways["full softmax, plain"] = lambda: heads.plain(mixed)
    if alternatives and mixed:
        ways["full softmax, plain, float32"] = lambda: heads.plain(False)
    if alternatives:
        ways["full softmax, ours"] = heads.full
    return Case(ways, heads.work, tokens=heads.tokens)


BENCHMARKS = [
    Benchmark(
        f"differentiated softmax step, {precision_name(mixed)}",
        "512 tokens, 100 000 words, 500 units",
        step,
        {"mixed": mixed},
        repeats=3,
    )
    for mixed in PRECISIONS
]
