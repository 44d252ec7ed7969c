"""The three trainings of section 2 on sentences: language model, discriminator, fine-tuning.

Shapes: N sentences, T words a sentence, V words. Losses are per token, in nats.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from paperlib import hardware
from paperlib.captured import Function, Replayed, can_replay
from paperlib.evaluation import BATCH_SIZE, finetuning_measures, over_batches, perplexity
from paperlib.losses import (
    exact_reverse_kl,
    finetuning_loss,
    log_p_hat,
    sigmoid_discriminator_loss,
)
from paperlib.models.readings import log_odds_of, log_q, log_q_of
from paperlib.settings import SecondTerm
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
        self._names: tuple[str, ...] = ()

    def batches(self, epoch: int, size: int) -> list[Tensor]:
        """Indices of sentences, shuffled by (seed, epoch); the last batch may be smaller."""
        order = np.random.default_rng([self._seed, epoch]).permutation(len(self.split.train))
        return list(torch.from_numpy(order).to(self.split.train.device).split(size))

    def backward(self, batch: Tensor) -> dict[str, Tensor]:
        """Gradients of the parts of the loss; returns their means per token and their sum."""
        measures = self._run(batch)
        return dict(zip(self._names, measures, strict=True))

    @cached_property
    def _run(self) -> Function:
        """How a batch is worked on: on a GPU as a graph, unless a model keeps it from that."""
        if can_replay(self.split.train.device, (self.model, *self.read_along())):
            return Replayed(self._add_gradients, self.model.parameters())
        return self._add_gradients

    def read_along(self) -> Sequence[nn.Module]:
        """Models that read every batch, beside the one that is trained."""
        return ()

    def _add_gradients(self, batch: Tensor) -> tuple[Tensor, ...]:
        with hardware.rounded_products(self._mixed):
            parts = self.parts(batch)
            loss = sum(parts.values())
            (loss * self._scale).backward()
        self._names = ("loss", *parts)
        return loss.detach(), *(part.detach() for part in parts.values())

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

    def read_along(self) -> Sequence[nn.Module]:
        return (self._q0,)

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
    numbers a token are computed once, in float32. ``discriminator=None`` is r ≡ ½ (Table 2); with
    the true distribution as ``q0`` it is the perfect discriminator, for then p̂ = p (eq. 8).

    ``second_term`` says how the divergence is taken. Its exact sum needs p̂ of every word, so both
    frozen models run in every step, in the training's precision.

    ``read_frozen`` is :func:`paperlib.evaluation.over_batches`, or something that remembers what it
    returned: fine-tunings often start from the same models.
    """

    criterion = "perplexity"

    def __init__(
        self,
        *args,
        q0: nn.Module,
        discriminator: nn.Module | None,
        second_term: SecondTerm | None = None,
        read_frozen: Callable[[nn.Module, Tensor, Callable], Tensor] = over_batches,
        **options,
    ):
        super().__init__(*args, **options)
        self._term = second_term or SecondTerm()
        self._read_frozen = read_frozen
        self._models = (q0.eval(), discriminator and discriminator.eval())
        # The sum computes p̂ anew in every step.
        is_sum = self._term.estimate == "sum"
        self._train_frozen = () if is_sum else self._frozen(self.split.train)
        self._valid_frozen = self._frozen(self.split.valid)

    def read_along(self) -> Sequence[nn.Module]:
        if self._term.estimate != "sum":
            return ()
        return tuple(model for model in self._models if model is not None)

    def parts(self, batch: Tensor) -> dict[str, Tensor]:
        """Cross-entropy and the reverse KL divergence, weighted as in the objective."""
        words = self.split.train[batch]
        logits = self.model(words, mixed=self._mixed)
        if self._term.estimate == "sum":
            log_q_all = log_q(logits)
            cross_entropy = -log_q_all.gather(-1, words.unsqueeze(-1)).squeeze(-1)
            reverse_kl = exact_reverse_kl(log_q_all, self._log_p_hat(words, self._mixed))
        else:
            frozen = (values[batch] for values in self._train_frozen)
            cross_entropy, reverse_kl = finetuning_loss(
                log_q_of(logits, words), *frozen, largest_t=self._term.largest_t
            )
        return {
            "cross_entropy": cross_entropy.mean(),
            "reverse_kl": self._term.weight * reverse_kl.mean(),
        }

    def validate(self) -> dict[str, float]:
        log_q_true = over_batches(self.model, self.split.valid, log_q_of)
        return finetuning_measures(log_q_true, *self._valid_frozen)

    @torch.no_grad()
    def _log_p_hat(self, words: Tensor, mixed: bool = False) -> Tensor:
        """Eq. (8) for every word of the vocabulary, ``(B, T, V)``, normalised if so asked."""
        q0, discriminator = self._models
        values = log_q(q0(words, mixed=mixed))
        if discriminator is not None:
            values = log_p_hat(values, discriminator(words, mixed=mixed))
        return log_q(values) if self._term.normalised else values

    def _frozen(self, sentences: Tensor) -> tuple[Tensor, Tensor]:
        """log q_0 and the log-odds at the true words; a normaliser of p̂ is part of the odds."""
        q0, discriminator = self._models
        log_q0 = self._read_frozen(q0, sentences, log_q_of)
        if discriminator is None:
            return log_q0, torch.zeros_like(log_q0)
        if not self._term.normalised:
            return log_q0, self._read_frozen(discriminator, sentences, log_odds_of)
        at_true_words = [
            self._log_p_hat(words).gather(-1, words.unsqueeze(-1)).squeeze(-1)
            for words in sentences.split(BATCH_SIZE)
        ]
        return log_q0, log_q0 - torch.cat(at_true_words)
