"""The three trainings of section 2 on sentences: language model, discriminator, fine-tuning.

Shapes: N sentences, T words a sentence, V words. Losses are per token, in nats.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from paperlib import hardware
from paperlib.evaluation import finetuning_measures, over_batches, perplexity
from paperlib.losses import finetuning_loss, sigmoid_discriminator_loss
from paperlib.models.readings import log_odds_of, log_q_of
from paperlib.training import Task


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


class SentenceTask(Task):
    """What the three tasks share: shuffled batches of sentences, and an optional probe.

    The objective is the mean loss per token or, with ``loss_per="sentence"``, T times that.
    """

    def __init__(
        self,
        title: str,
        model: nn.Module,
        split: Split,
        *,
        seed: int,
        loss_per: Literal["sentence", "word"] = "sentence",
        mixed: bool = False,
        probe: Probe | None = None,
    ):
        self.title = title
        self.model = model
        self.split = split
        self._scale = split.train.shape[1] if loss_per == "sentence" else 1
        self._seed = seed
        self._mixed = mixed
        self._probe = probe

    def batches(self, epoch: int, size: int) -> list[Tensor]:
        """Indices of sentences, shuffled by (seed, epoch); the last batch may be smaller."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self.split.train))
        return list(torch.from_numpy(order).to(self.split.train.device).split(size))

    def backward(self, batch: Tensor) -> dict[str, Tensor]:
        """Gradients of the parts of the loss; returns their means per token and their sum."""
        with hardware.rounded_products(self._mixed):
            parts = self.parts(batch)
            loss = sum(parts.values())
            (loss * self._scale).backward()
        return {"loss": loss.detach()} | {name: part.detach() for name, part in parts.items()}

    @abstractmethod
    def parts(self, batch: Tensor) -> dict[str, Tensor]:
        """The mean loss per token of a batch of sentences' indices, in its parts."""

    def tokens(self, batch: Tensor) -> int:
        """Predicted words."""
        return batch.numel() * self.split.train.shape[1]

    def probe(self) -> list[float]:
        """Probabilities of the probed words."""
        return [] if self._probe is None else self._probe.log_probs(self.model).exp().tolist()


class LanguageModelTask(SentenceTask):
    """Cross-entropy, eq. (1)."""

    criterion = "perplexity"

    def parts(self, batch: Tensor) -> dict[str, Tensor]:
        """Cross-entropy alone."""
        words = self.split.train[batch]
        log_q_true = log_q_of(self.model(words, mixed=self._mixed), words)
        return {"cross_entropy": -log_q_true.mean()}

    def validate(self) -> dict[str, float]:
        return {"perplexity": perplexity(over_batches(self.model, self.split.valid, log_q_of))}


class DiscriminatorTask(SentenceTask):
    """Eq. (6) against the frozen language model ``q0``, at real contexts only."""

    criterion = "d"

    def __init__(self, *args, q0: nn.Module, **options):
        super().__init__(*args, **options)
        self._q0 = q0.eval()

    def parts(self, batch: Tensor) -> dict[str, Tensor]:
        """D^(q) and D^(p)."""
        d_q, d_p = self._parts(self.split.train[batch], self._mixed)
        return {"d_q": d_q.mean(), "d_p": d_p.mean()}

    def validate(self) -> dict[str, float]:
        parts = [torch.stack(self._parts(words, False)) for words in self.split.valid.split(1024)]
        d_q, d_p = torch.cat(parts, dim=1).double().mean(dim=(1, 2)).tolist()
        return {"d": d_q + d_p, "d_q": d_q, "d_p": d_p}

    def _parts(self, words: Tensor, mixed: bool) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits_q0 = self._q0(words, mixed=mixed)
        logits = self.model(words, mixed=mixed)
        return sigmoid_discriminator_loss(logits_q0, logits, words)


class FinetuningTask(SentenceTask):
    """Eq. (12): cross-entropy plus the reverse KL divergence that the discriminator estimates.

    ``q0`` and ``discriminator`` are frozen and enter only at the true next word, so their two
    numbers a token are computed once, in float32. ``discriminator=None`` is r ≡ ½ (Table 2).
    """

    criterion = "perplexity"

    def __init__(self, *args, q0: nn.Module, discriminator: nn.Module | None, **options):
        super().__init__(*args, **options)
        self._train_frozen = _frozen(q0, discriminator, self.split.train)
        self._valid_frozen = _frozen(q0, discriminator, self.split.valid)

    def parts(self, batch: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and the estimated reverse KL divergence."""
        words = self.split.train[batch]
        log_q_true = log_q_of(self.model(words, mixed=self._mixed), words)
        frozen = (values[batch] for values in self._train_frozen)
        cross_entropy, reverse_kl = finetuning_loss(log_q_true, *frozen)
        return {"cross_entropy": cross_entropy.mean(), "reverse_kl": reverse_kl.mean()}

    def validate(self) -> dict[str, float]:
        log_q_true = over_batches(self.model, self.split.valid, log_q_of)
        return finetuning_measures(log_q_true, *self._valid_frozen)


def _frozen(q0: nn.Module, discriminator: nn.Module | None, sentences: Tensor):
    log_q0 = over_batches(q0, sentences, log_q_of)
    if discriminator is None:
        return log_q0, torch.zeros_like(log_q0)
    return log_q0, over_batches(discriminator, sentences, log_odds_of)
