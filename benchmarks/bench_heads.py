"""One training step of a mixture of softmaxes and of its discriminator, beside the plain ways.

    python -m benchmarks.bench_heads

Forward and backward of the output head alone, from latent vectors to gradients, at the shape of
Penn Treebank. The plain language model takes the softmax of every expert, their weighted sum and
its logarithm, as the published code does; the plain discriminator holds q_0, log r and their
product. The library's ways are timed with its chunks recomputed (``KEEP`` = 0) and, where all of
the logits fit into ``KEEP``, kept. Repetitions alternate; peak memory is that of a fresh process.
"""

import argparse
import multiprocessing
import os
import platform
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_trigram import seconds
from paperlib import hardware
from paperlib.models import fused
from paperlib.progress import bar


class Case:
    """Random latents, mixture weights, embedding, target and q_0 of one shape."""

    def __init__(self, tokens: int, experts: int, words: int, width: int):
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.latents = draw(tokens, experts, width).tanh().requires_grad_()
        self.log_pi = draw(tokens, experts).log_softmax(-1).requires_grad_()
        self.embedding = (0.1 * draw(words, width)).requires_grad_()
        self.bias = torch.zeros(words, requires_grad=True)
        self.target = torch.randint(words, (tokens,), generator=generator)
        self.log_q0 = draw(tokens, words).log_softmax(-1)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """By everything that is trained."""
        inputs = (self.latents, self.log_pi, self.embedding, self.bias)
        return torch.autograd.grad(loss, inputs, allow_unused=True)

    def model(self) -> list[Tensor]:
        """Cross-entropy, as the library does it."""
        target = self.target.unsqueeze(-1).expand(self.log_pi.shape).flatten()
        rows = self.latents.flatten(0, 1)
        of_experts = fused.target_log_softmax(rows, self.embedding, self.bias, target)
        log_q = torch.logsumexp(of_experts.view(self.log_pi.shape) + self.log_pi, dim=-1)
        return self.gradients(-log_q.mean())

    def model_plain(self) -> list[Tensor]:
        """Softmax of every expert, weighted sum, logarithm."""
        softmax = F.linear(self.latents, self.embedding, self.bias).softmax(-1)
        q = (softmax * self.log_pi.exp().unsqueeze(-1)).sum(1)
        return self.gradients(F.nll_loss(q.add(1e-8).log(), self.target))

    def discriminator(self) -> list[Tensor]:
        """D^(q), as the library does it."""
        arguments = (self.latents, self.log_pi, self.embedding, self.bias, self.log_q0)
        return self.gradients(fused.sigmoid_mixture_expectation(*arguments).mean())

    def discriminator_plain(self) -> list[Tensor]:
        """D^(q) from q_0, log r of all words and their product."""
        log_sigmoid = F.logsigmoid(F.linear(self.latents, self.embedding, self.bias))
        log_r = torch.logsumexp(log_sigmoid + self.log_pi.unsqueeze(-1), dim=1)
        return self.gradients(-(self.log_q0.exp() * log_r).sum(-1).mean())


WAYS = ("model", "model_plain", "discriminator", "discriminator_plain")


def _peak(shape: tuple[int, ...], way: str, answers) -> None:
    case = Case(*shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is in use
    before = _status("VmRSS")
    getattr(case, way)()
    answers.put(_status("VmHWM") - before)


def _status(name: str) -> float:
    """Memory of this process in MB: now (VmRSS) or at most (VmHWM). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def peak_mb(shape: tuple[int, ...], way: str) -> float:
    """Most memory (MB) that a step takes beyond its inputs, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=_peak, args=(shape, way, answers))
    process.start()
    process.join()
    return answers.get()


def main() -> None:
    """Print a table of medians, ranges, peak memory and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=840)
    parser.add_argument("--experts", type=int, default=15)
    parser.add_argument("--words", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=280)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    shape = (given.tokens, given.experts, given.words, given.width)
    hardware.keep_memory()
    case = Case(*shape)
    times = {way: [] for way in WAYS}
    for _ in bar(range(given.repeats), title="repetitions"):
        for way in WAYS:
            times[way].append(seconds(getattr(case, way)))
    memory = {way: peak_mb(shape, way) for way in bar(WAYS, title="memory")}

    print(
        f"{platform.machine()}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, ", end=""
    )
    print(f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}, float32")
    print("{} tokens, {} experts, {} words, width {}".format(*shape), end="")
    print(f", {given.repeats} repetitions\n")
    headings = ("median s", "min s", "max s", "ratio", "peak MB", "ratio")
    print(f"{'':22}" + "".join(f"{heading:>10}" for heading in headings))
    for way, runs in times.items():
        own = way.removesuffix("_plain")
        median = statistics.median(runs)
        slower, larger = median / statistics.median(times[own]), memory[way] / memory[own]
        print(f"{way:22}{median:10.3f}{min(runs):10.3f}{max(runs):10.3f}{slower:10.1f}", end="")
        print(f"{memory[way]:10.0f}{larger:10.1f}")


if __name__ == "__main__":
    main()
