"""Output heads with tied weights: softmax, mixture of softmaxes, direct output connection.

Each is read as a language model (softmax) or as a discriminator (sigmoid). Shapes: T steps, B
streams, V words, K experts, E embedding units, N = T · B tokens. All is in log space and in nats.

Nothing of size N × K × V is ever held: the vocabulary is worked on in chunks of tokens, and a
chunk is computed anew when its gradient is asked for.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from paperlib.losses import discriminator_loss
from paperlib.models import dropout as drop
from paperlib.models import readings
from paperlib.network import Network

CHUNK = 1 << 22
"""Logits that are held at once."""


def by_chunks(function: Callable, rows: tuple[Tensor, ...], others: tuple, entries: int):
    """``function(*rows, *others)``, computed for some rows at a time and put together again.

    ``entries`` is the number of logits a row makes. The result is one tensor or a tuple of them,
    with the rows as first axis.
    """
    size = max(1, CHUNK // entries)
    parts = [
        checkpoint(function, *part, *others, use_reentrant=False, preserve_rng_state=False)
        for part in zip(*(row.split(size) for row in rows), strict=True)
    ]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


class Softmax(nn.Module):
    """One softmax over the last layer's output, which is as wide as the embedding."""

    def __init__(self, n_words: int, network: Network):
        super().__init__()
        self.bias = nn.Parameter(torch.empty(n_words))

    def initialise(self, generator: torch.Generator) -> None:
        """Zero bias."""
        self.bias.zero_()

    def prepare(self, layers: tuple[Tensor, ...], generator) -> tuple[Tensor]:
        """The last layer's output, ``(T, B, E)``."""
        return (layers[-1],)

    def log_q(self, head, embedding: Tensor) -> Tensor:
        """``(T, B, V)``."""
        return readings.log_q(self._logits(head, embedding))

    def log_q_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """``(T, B)``."""

        def of(hidden: Tensor, target: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
            return readings.log_q_of(F.linear(hidden, embedding, bias), target)

        rows = (head[0].flatten(0, 1), target.flatten())
        return by_chunks(of, rows, (embedding, self.bias), len(embedding)).view(target.shape)

    def log_r(self, head, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """``(T, B, V)`` each."""
        return readings.log_r(self._logits(head, embedding))

    def log_odds_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """``(T, B)``."""
        return (head[0] * F.embedding(target, embedding)).sum(-1) + self.bias[target]

    def discriminator_loss(
        self, head, embedding: Tensor, log_q0: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(T, B)`` each."""

        def of(hidden, log_q0, target, embedding, bias) -> tuple[Tensor, Tensor]:
            log_r = readings.log_r(F.linear(hidden, embedding, bias))
            return discriminator_loss(log_q0, *log_r, target)

        rows = (head[0].flatten(0, 1), log_q0.flatten(0, 1), target.flatten())
        parts = by_chunks(of, rows, (embedding, self.bias), len(embedding))
        return tuple(part.view(target.shape) for part in parts)

    def _logits(self, head, embedding: Tensor) -> Tensor:
        return F.linear(head[0], embedding, self.bias)


class Mixture(nn.Module):
    """A mixture of K softmaxes, q = Σ_k π_k softmax(W z_k + b), or of K sigmoids.

    The experts' latent vectors are z_k = tanh(A_k h + a_k), with h the output of the layer that
    feeds expert k, and π = softmax(P h) of the last layer. With experts on the last layer alone
    this is the mixture of softmaxes of Yang et al. (2017); with experts on inner layers too, the
    direct output connection of Takase et al. (2018), who present it as a generalisation of that and
    write its latents without tanh.

    The paper says only "sigmoid instead of softmax". For a mixture that is
    r = Σ_k π_k σ(w · z_k + b), so 1 − r = Σ_k π_k σ(−(w · z_k + b)).
    """

    def __init__(self, n_words: int, network: Network):
        super().__init__()
        self.network = network
        self.bias = nn.Parameter(torch.empty(n_words))
        self.latents = nn.ModuleList(
            nn.Linear(units, experts * network.embedding)
            for units, experts in zip(network.hidden, network.experts, strict=True)
            if experts
        )
        self.prior = nn.Linear(network.hidden[-1], sum(network.experts), bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Zero output bias; all else uniform in ±1/√inputs."""
        self.bias.zero_()
        for layer in (*self.latents, self.prior):
            for weights in layer.parameters():
                bound = layer.in_features**-0.5
                weights.uniform_(-bound, bound, generator=generator)

    def prepare(self, layers: tuple[Tensor, ...], generator) -> tuple[Tensor, Tensor]:
        """Latents ``(T, B, K, E)`` and log π ``(T, B, K)``."""
        fed = [layer for layer, n in zip(layers, self.network.experts, strict=True) if n]
        latents = torch.cat([make(h) for make, h in zip(self.latents, fed, strict=True)], dim=-1)
        latents = drop.locked(latents.tanh(), self.network.dropout.latent, generator)
        log_pi = F.log_softmax(self.prior(layers[-1]), dim=-1)
        return latents.unflatten(-1, (-1, self.network.embedding)), log_pi

    def log_q(self, head, embedding: Tensor) -> Tensor:
        """``(T, B, V)``."""

        def of(latents, log_pi, embedding, bias) -> Tensor:
            log_softmax = F.log_softmax(F.linear(latents, embedding, bias), dim=-1)
            return torch.logsumexp(log_softmax + log_pi.unsqueeze(-1), dim=1)

        log_q = self._by_chunks(of, head, (), embedding)
        return log_q.unflatten(0, head[0].shape[:2])

    def log_q_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """``(T, B)``; only each expert's log-probability of the target is kept."""

        def of(latents, log_pi, target, embedding, bias) -> Tensor:
            logits = F.linear(latents, embedding, bias)
            log_softmax = readings.log_q_of(logits, target.unsqueeze(-1).expand(log_pi.shape))
            return torch.logsumexp(log_softmax + log_pi, dim=-1)

        return self._by_chunks(of, head, (target.flatten(),), embedding).view(target.shape)

    def log_r(self, head, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """``(T, B, V)`` each."""
        log_r = self._by_chunks(self._log_r, head, (), embedding)
        return tuple(part.unflatten(0, head[0].shape[:2]) for part in log_r)

    def log_odds_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """``(T, B)``; no logit of another word is computed."""
        latents, log_pi = head
        of_target = F.embedding(target, embedding).unsqueeze(-1)
        logits = (latents @ of_target).squeeze(-1) + self.bias[target].unsqueeze(-1)
        log_r, log_not_r = (
            torch.logsumexp(log_pi + F.logsigmoid(sign * logits), dim=-1) for sign in (1, -1)
        )
        return log_r - log_not_r

    def discriminator_loss(
        self, head, embedding: Tensor, log_q0: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(T, B)`` each."""

        def of(latents, log_pi, log_q0, target, embedding, bias) -> tuple[Tensor, Tensor]:
            log_r = self._log_r(latents, log_pi, embedding, bias)
            return discriminator_loss(log_q0, *log_r, target)

        rows = (log_q0.flatten(0, 1), target.flatten())
        parts = self._by_chunks(of, head, rows, embedding)
        return tuple(part.view(target.shape) for part in parts)

    def imbalance(self, head) -> Tensor:
        """Squared coefficient of variation of the experts' total weights over all tokens.

        (sd/mean)² with the sample's standard deviation over the K totals; Takase et al. (2018),
        after Shazeer et al. (2017).
        """
        totals = head[1].exp().flatten(0, 1).sum(0)
        return totals.var() / totals.mean() ** 2

    @staticmethod
    def _log_r(latents, log_pi, embedding, bias) -> tuple[Tensor, Tensor]:
        logits = F.linear(latents, embedding, bias)
        log_pi = log_pi.unsqueeze(-1)
        return tuple(
            torch.logsumexp(F.logsigmoid(sign * logits) + log_pi, dim=1) for sign in (1, -1)
        )

    def _by_chunks(self, function, head, rows: tuple[Tensor, ...], embedding: Tensor):
        rows = tuple(part.flatten(0, 1) for part in head) + rows
        entries = sum(self.network.experts) * len(embedding)
        return by_chunks(function, rows, (embedding, self.bias), entries)
