"""Differentiated softmax (Chen et al., 2016): the rarer a block of words, the fewer units it reads.

Words are sorted by frequency, the most frequent first, and cut into blocks. Block b has its own
output weights W_b ``(V_b, d_b)``; in the matrix of all words these are blocks on the diagonal, and
all else is zero. Two readings of what they are multiplied with:

- *slices*: the last layer's output is cut into slices of d_b units, one for each block, as in
  Chen et al.; the d_b add up to the layer's units.
- *projected*: z_b = A_b h, so that each block reads all of the output, at the cost of the
  projections A_b ``(d_b, H)``, as in the adaptive softmax (Grave et al., 2017, "Efficient softmax
  approximation for GPUs").

The default is *slices*: the paper cites Chen et al. and names no projections, and blocks from 150
to 16 units that add up to its 500 are easily had. What speaks for *projected*: of the output, a
slice leaves 16 units to tell the rarest words apart, where a projection can draw on all 500.

Shapes as in :mod:`paperlib.models.heads`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.models import readings
from paperlib.models.fused import log_normaliser, sigmoid_mixture_expectation
from paperlib.network import Network


class Differentiated(nn.Module):
    """An output head with the interface of those in :mod:`paperlib.models.heads`, not tied."""

    def __init__(self, n_words: int, network: Network):
        super().__init__()
        self.network = network
        self.units = [block.units for block in network.blocks]
        self.words = block_sizes(n_words, network)
        self.weights = nn.ParameterList(map(torch.empty, self.words, self.units))
        self.bias = nn.Parameter(torch.empty(n_words))
        inputs = network.hidden[-1]
        self.projection = (
            nn.Linear(inputs, sum(self.units), bias=False) if network.projected else None
        )

    def initialise(self, generator: torch.Generator) -> None:
        """Zero bias; output weights uniform in ±``init_range``, projections in ±1/√inputs."""
        self.bias.zero_()
        for weights in self.weights:
            weights.uniform_(-self.network.init_range, self.network.init_range, generator=generator)
        if self.projection is not None:
            bound = self.projection.in_features**-0.5
            self.projection.weight.uniform_(-bound, bound, generator=generator)

    def prepare(self, layers: tuple[Tensor, ...], generator) -> tuple[Tensor, ...]:
        """What each block reads, ``(T, B, d_b)``."""
        last = layers[-1] if self.projection is None else self.projection(layers[-1])
        return last.split(self.units, dim=-1)

    def log_q(self, head, embedding: Tensor) -> Tensor:
        """``(T, B, V)``."""
        return readings.log_q(self._logits(head))

    def log_q_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """``(T, B)``; no logit of another word is kept."""
        normalisers = [
            log_normaliser(latents.flatten(0, 1), weights, bias)
            for latents, weights, bias in self._blocks(head)
        ]
        total = torch.logsumexp(torch.stack(normalisers, dim=-1), dim=-1)
        return self.log_odds_of(head, embedding, target) - total.view(target.shape)

    def log_r(self, head, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """``(T, B, V)`` each."""
        return readings.log_r(self._logits(head))

    def log_odds_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """The logits of the words ``target``, ``(T, B)``."""
        logits = self.bias[target]
        start = 0
        for latents, weights, bias in self._blocks(head):
            # Which tokens have their next word in this block: few, for the rare ones.
            here = torch.nonzero((target >= start) & (target < start + len(bias)), as_tuple=True)
            of_block = latents[here] * F.embedding(target[here] - start, weights)
            logits = logits.index_put(here, of_block.sum(-1), accumulate=True)
            start += len(bias)
        return logits

    def discriminator_loss(
        self, head, embedding: Tensor, log_q0: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(T, B)`` each; the sum over the vocabulary is one over blocks."""
        d_q = sum(
            sigmoid_mixture_expectation(
                latents.flatten(0, 1).unsqueeze(1),
                latents.new_zeros(target.numel(), 1),
                weights,
                bias,
                log_q0_of_block.flatten(0, 1),
            )
            for (latents, weights, bias), log_q0_of_block in zip(
                self._blocks(head), log_q0.split(self.words, dim=-1), strict=True
            )
        )
        return d_q.view(target.shape), -F.logsigmoid(-self.log_odds_of(head, embedding, target))

    def _blocks(self, head) -> zip:
        return zip(head, self.weights, self.bias.split(self.words), strict=True)

    def _logits(self, head) -> Tensor:
        return torch.cat([F.linear(*block) for block in self._blocks(head)], dim=-1)


def block_sizes(n_words: int, network: Network) -> list[int]:
    """Number of words of each block; the last one takes what is left.

    Raises ``ValueError`` where nothing is left for it.
    """
    given = [block.words for block in network.blocks[:-1]]
    left = n_words - sum(given)
    if left < 1:
        raise ValueError(
            f"the first {len(given)} blocks of the differentiated softmax have {sum(given)} words, "
            f"which leaves none of {n_words} for the last; make them smaller"
        )
    return [*given, left]
