"""Output heads with tied weights: softmax, mixture of softmaxes, direct output connection.

Each is read as a language model (softmax) or as a discriminator (sigmoid). Shapes: T steps, B
streams, V words, K experts, E embedding units, N = T · B tokens. All is in log space and in nats.

Nothing of size N × K × V is held unless it is small (see :mod:`paperlib.models.fused`) or gradients
of all of ``log_q`` or ``log_r`` are asked for, which no training does.
"""

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.models import dropout as drop
from paperlib.models import readings
from paperlib.models.fused import (
    mixture_log_softmax,
    sigmoid_mixture_expectation,
    target_log_softmax,
)
from paperlib.network import Network


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
        values = target_log_softmax(head[0].flatten(0, 1), embedding, self.bias, target.flatten())
        return values.view(target.shape)

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
        hidden = head[0].flatten(0, 1).unsqueeze(1)
        log_pi = hidden.new_zeros(len(hidden), 1)
        log_q0 = log_q0.flatten(0, 1)
        d_q = sigmoid_mixture_expectation(hidden, log_pi, embedding, self.bias, log_q0)
        logits = self.log_odds_of(head, embedding, target)
        return d_q.view(target.shape), -F.logsigmoid(-logits)

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
        if not torch.is_grad_enabled():
            latents, log_pi = (part.flatten(0, 1) for part in head)
            log_q = mixture_log_softmax(latents, log_pi, embedding, self.bias)
            return log_q.unflatten(0, head[1].shape[:2])
        parts = (
            F.log_softmax(logits, dim=-1) + log_pi
            for logits, log_pi in self._experts(head, embedding)
        )
        return functools.reduce(torch.logaddexp, parts)

    def log_q_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """``(T, B)``; only each expert's log-probability of the target is kept."""
        latents, log_pi = head
        of_experts = target_log_softmax(
            latents.flatten(0, 2),
            embedding,
            self.bias,
            target.unsqueeze(-1).expand(log_pi.shape).flatten(),
        )
        return torch.logsumexp(of_experts.view(log_pi.shape) + log_pi, dim=-1)

    def log_r(self, head, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """``(T, B, V)`` each."""
        parts = (
            tuple(part + log_pi for part in readings.log_r(logits))
            for logits, log_pi in self._experts(head, embedding)
        )
        return functools.reduce(lambda total, part: tuple(map(torch.logaddexp, total, part)), parts)

    def log_odds_of(self, head, embedding: Tensor, target: Tensor) -> Tensor:
        """``(T, B)``; no logit of another word is computed."""
        log_r, log_not_r = self._log_r_of(head, embedding, target)
        return log_r - log_not_r

    def discriminator_loss(
        self, head, embedding: Tensor, log_q0: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """``(T, B)`` each."""
        d_q = sigmoid_mixture_expectation(
            *(part.flatten(0, 1) for part in head), embedding, self.bias, log_q0.flatten(0, 1)
        )
        _, log_not_r = self._log_r_of(head, embedding, target)
        return d_q.view(target.shape), -log_not_r

    def imbalance(self, head) -> Tensor:
        """Squared coefficient of variation of the experts' total weights over all tokens.

        (sd/mean)² with the sample's standard deviation over the K totals; Takase et al. (2018),
        after Shazeer et al. (2017).
        """
        totals = head[1].exp().flatten(0, 1).sum(0)
        return totals.var() / totals.mean() ** 2

    def _experts(self, head, embedding: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits ``(T, B, V)`` and log π ``(T, B, 1)`` of one expert after another."""
        latents, log_pi = head
        for k in range(log_pi.shape[-1]):
            yield F.linear(latents[:, :, k], embedding, self.bias), log_pi[:, :, k, None]

    def _log_r_of(self, head, embedding: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        latents, log_pi = head
        logits = latents @ F.embedding(target, embedding).unsqueeze(-1)
        logits = logits.squeeze(-1) + self.bias[target].unsqueeze(-1)
        return tuple(torch.logsumexp(log_pi + part, dim=-1) for part in readings.log_r(logits))
