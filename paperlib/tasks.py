"""The three trainings of section 2 on sentences: language model, discriminator, fine-tuning.

Shapes: N sentences, T words a sentence, V words. Losses are per token, in nats.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.evaluation import over_batches, perplexity
from paperlib.losses import finetuning_loss, log_t, sigmoid_discriminator_loss
from paperlib.models.readings import log_odds_of, log_q, log_q_of


@dataclass(frozen=True)
class Split:
    """Training and validation sentences, ``(N, T)`` of word ids."""

    train: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Probe:
    """Words in fixed contexts whose probability is recorded after every step (Figures 1 and 2).

    ``sentences`` is ``(K, T)``; the k-th context is ``sentences[k, :positions[k]]`` and
    ``words[k]`` the word whose probability after it is read.
    """

    sentences: Tensor
    positions: Tensor
    words: Tensor

    def log_probs(self, model: nn.Module) -> Tensor:
        """log q(word | context), ``(K,)`` nats."""
        return log_q_of(self._logits(model), self.words)

    def log_odds(self, model: nn.Module) -> Tensor:
        """log r − log(1 − r) of a discriminator, ``(K,)``."""
        return log_odds_of(self._logits(model), self.words)

    def _logits(self, model: nn.Module) -> Tensor:
        rows = torch.arange(len(self.words), device=self.words.device)
        return model(self.sentences)[rows, self.positions]


class SentenceTask:
    """What the three tasks share: shuffled batches of sentences, and an optional probe."""

    def __init__(
        self,
        title: str,
        model: nn.Module,
        split: Split,
        *,
        seed: int,
        precision: torch.dtype = torch.float32,
        probe: Probe | None = None,
    ):
        self.title = title
        self.model = model
        self.split = split
        self.tokens_per_example = split.train.shape[1]
        self._seed = seed
        self._precision = precision
        self._probe = probe

    def batches(self, epoch: int, size: int) -> list[Tensor]:
        """Indices of sentences, shuffled by (seed, epoch); the last batch may be smaller."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self.split.train))
        return list(torch.from_numpy(order).to(self.split.train.device).split(size))

    def probe(self) -> list[float]:
        """Probabilities of the probed words."""
        return [] if self._probe is None else self._probe.log_probs(self.model).exp().tolist()


class LanguageModelTask(SentenceTask):
    """Cross-entropy, eq. (1)."""

    criterion = "perplexity"

    def loss(self, batch: Tensor) -> Tensor:
        words = self.split.train[batch]
        return -log_q_of(self.model(words, precision=self._precision), words).mean()

    def validate(self) -> dict[str, float]:
        return {"perplexity": perplexity(over_batches(self.model, self.split.valid, log_q_of))}


class DiscriminatorTask(SentenceTask):
    """Eq. (6) against the frozen language model ``q0``, at real contexts only."""

    criterion = "d"

    def __init__(self, *args, q0: nn.Module, **options):
        super().__init__(*args, **options)
        self._q0 = q0.eval()

    def loss(self, batch: Tensor) -> Tensor:
        words = self.split.train[batch]
        return sum(part.mean() for part in self._parts(words, self._precision))

    def validate(self) -> dict[str, float]:
        parts = [
            torch.stack(self._parts(words, torch.float32)) for words in self.split.valid.split(1024)
        ]
        d_q, d_p = torch.cat(parts, dim=1).double().mean(dim=(1, 2)).tolist()
        return {"d": d_q + d_p, "d_q": d_q, "d_p": d_p}

    def _parts(self, words: Tensor, precision: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            log_q0 = log_q(self._q0(words, precision=precision))
        logits = self.model(words, precision=precision)
        return sigmoid_discriminator_loss(log_q0, logits, words)


class FinetuningTask(SentenceTask):
    """Eq. (12): cross-entropy plus the reverse KL divergence that the discriminator estimates.

    ``q0`` and ``discriminator`` are frozen and enter only at the true next word, so their two
    numbers a token are computed once, in float32. ``discriminator=None`` is r ≡ ½ (Table 2).

    t has heavy tails, so validation also reports the largest t and the share of tokens that
    effectively contribute to the estimated divergence, (Σ|x|)²/(n Σx²) with x = t log t.
    """

    criterion = "perplexity"

    def __init__(self, *args, q0: nn.Module, discriminator: nn.Module | None, **options):
        super().__init__(*args, **options)
        self._train_frozen = _frozen(q0, discriminator, self.split.train)
        self._valid_frozen = _frozen(q0, discriminator, self.split.valid)

    def loss(self, batch: Tensor) -> Tensor:
        words = self.split.train[batch]
        log_q_true = log_q_of(self.model(words, precision=self._precision), words)
        frozen = (values[batch] for values in self._train_frozen)
        return sum(part.mean() for part in finetuning_loss(log_q_true, *frozen))

    def validate(self) -> dict[str, float]:
        log_q_true = over_batches(self.model, self.split.valid, log_q_of).double()
        frozen = (values.double() for values in self._valid_frozen)
        log_q0, log_odds = frozen
        cross_entropy, reverse_kl = finetuning_loss(log_q_true, log_q0, log_odds)
        return {
            "perplexity": float(cross_entropy.mean().exp()),
            "loss": float((cross_entropy + reverse_kl).mean()),
            "reverse_kl": float(reverse_kl.mean()),
            "largest_t": float(log_t(log_q_true, log_q0, log_odds).max().exp()),
            "effective_share": float(reverse_kl.abs().sum() ** 2 / (reverse_kl**2).sum())
            / reverse_kl.numel(),
        }


def _frozen(q0: nn.Module, discriminator: nn.Module | None, sentences: Tensor):
    log_q0 = over_batches(q0, sentences, log_q_of)
    if discriminator is None:
        return log_q0, torch.zeros_like(log_q0)
    return log_q0, over_batches(discriminator, sentences, log_odds_of)
