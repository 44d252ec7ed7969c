"""The three trainings of section 4 on running text: language model, discriminator, fine-tuning.

What they share is :mod:`paperlib.stream_training`'s. Losses are per token, in nats.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.estimates import error_of_mean
from paperlib.evaluation import finetuning_measures, perplexity
from paperlib.losses import exact_reverse_kl, finetuning_loss, log_p_hat
from paperlib.models.stream import StreamModel
from paperlib.remembered import anew
from paperlib.settings import SecondTerm
from paperlib.stream_training import StreamTask
from paperlib.streams import VALIDATION_STREAMS, along, over_tokens


class LanguageModelStreams(StreamTask):
    """Cross-entropy, eq. (1)."""

    criterion = "perplexity"

    def parts(self, encoded, target) -> dict[str, Tensor]:
        """Cross-entropy alone."""
        return {"cross_entropy": -self.model.log_q_of(encoded["model"], target).mean()}

    def validate(self) -> dict[str, float]:
        """Perplexity."""
        return {"perplexity": perplexity(self.on_valid(self.model.log_q_of, self.model).cpu())}


class DiscriminatorStreams(StreamTask):
    """Eq. (6) against the frozen language model ``q0``, at real contexts only."""

    criterion = "d"

    def __init__(self, *args, q0: nn.Module, **options):
        self._q0 = q0.eval()
        super().__init__(*args, readers={"q0": q0}, **options)

    def parts(self, encoded, target) -> dict[str, Tensor]:
        """D^(q) and D^(p)."""
        with torch.no_grad():
            log_q0 = self._q0.log_q(encoded["q0"])
        d_q, d_p = self.model.discriminator_loss(encoded["model"], log_q0, target)
        return {"d_q": d_q.mean(), "d_p": d_p.mean()}

    def validate(self) -> dict[str, float]:
        """D and its two parts."""
        parts = discriminator_losses(self._q0, self.model, self.valid, self.eos)
        d_q, d_p = parts.double().mean(dim=0).tolist()
        return {"d": d_q + d_p, "d_q": d_q, "d_p": d_p}


class FinetuningStreams(StreamTask):
    """Eq. (12): cross-entropy plus the reverse KL divergence that the discriminator estimates.

    ``q0`` and ``discriminator`` are frozen and enter only at the true next word, so their two
    numbers a token are computed once. ``discriminator=None`` is r ≡ ½ (Table 2).

    ``second_term`` says how the divergence is taken. Its exact sum needs p̂ of every word, so both
    frozen models are read along in every step, their states carried; log q of all words is then
    held with what its gradient needs, for a mixture once an expert.

    Fine-tunings of one text from the same models can share what these say: with one ``once``, a
    :class:`~paperlib.remembered.Remembered`.
    """

    criterion = "perplexity"

    def __init__(
        self,
        *args,
        q0: nn.Module,
        discriminator: nn.Module | None,
        second_term: SecondTerm | None = None,
        once: Callable[[tuple, Callable[[], Tensor]], Tensor] = anew,
        **options,
    ):
        self._term = second_term or SecondTerm()
        self._once = once
        self._frozen = {"q0": q0.eval()}
        if discriminator is not None:
            self._frozen["discriminator"] = discriminator.eval()
        self._is_sum = self._term.estimate == "sum"
        how = {"readers": self._frozen} if self._is_sum else {"others": [*self._frozen.values()]}
        super().__init__(*args, **how, **options)
        self._valid_frozen = self._read_frozen(("valid",), self.on_valid)

    def new_text(self) -> None:
        """Read the frozen models along the text, once; the sum computes p̂ anew in every step."""
        self._cached: tuple[Tensor, ...] = ()
        if self._is_sum:
            return
        text = self.train[:-1], self.train[1:]
        streams = self.training.batch_size, self._mine.start, self._mine.stop, *self._parts
        self._cached = self._read_frozen(streams, lambda read, *models: along(models, *text, read))

    def _read_frozen(self, text: tuple, compute: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """log q_0 and the log-odds at the true words; a normaliser of p̂ is part of the odds.

        ``compute(read, *models)`` returns what ``read`` makes of each token of this ``text``.
        """

        def over(read: Callable, *models: StreamModel) -> Tensor:
            return self._once((read, text), lambda: compute(read, *models))

        q0, discriminator = self._frozen["q0"], self._frozen.get("discriminator")
        log_q0 = over(q0.log_q_of, q0)
        if discriminator is None:
            return log_q0, torch.zeros_like(log_q0)
        if not self._term.normalised:
            return log_q0, over(discriminator.log_odds_of, discriminator)

        def at_true_words(encoded0, encoded, target: Tensor) -> Tensor:
            values = self._log_p_hat({"q0": encoded0, "discriminator": encoded})
            return values.gather(-1, target.unsqueeze(-1)).squeeze(-1)

        return log_q0, log_q0 - compute(at_true_words, q0, discriminator)

    @torch.no_grad()
    def _log_p_hat(self, encoded: dict[str, Any]) -> Tensor:
        """Eq. (8) for every word of the vocabulary, ``(T, B, V)``, normalised if so asked."""
        values = self._frozen["q0"].log_q(encoded["q0"])
        if "discriminator" in self._frozen:
            log_r, log_not_r = self._frozen["discriminator"].log_r(encoded["discriminator"])
            values = log_p_hat(values, log_r - log_not_r)
        return values.log_softmax(-1) if self._term.normalised else values

    def inputs(self, batch, columns) -> tuple[Tensor, ...]:
        """The frozen models' numbers too, where they are computed once."""
        words_and_target = super().inputs(batch, columns)  # reads the text, and so what is cached
        rows = slice(batch.start, batch.start + batch.length)
        return *words_and_target, *(values[rows, columns] for values in self._cached)

    def parts(self, encoded, target, *frozen) -> dict[str, Tensor]:
        """Cross-entropy and the reverse KL divergence, weighted as in the objective."""
        if self._is_sum:
            log_q = self.model.log_q(encoded["model"])
            cross_entropy = -log_q.gather(-1, target.unsqueeze(-1)).squeeze(-1)
            reverse_kl = exact_reverse_kl(log_q, self._log_p_hat(encoded))
        else:
            log_q = self.model.log_q_of(encoded["model"], target)
            cross_entropy, reverse_kl = finetuning_loss(
                log_q, *frozen, largest_t=self._term.largest_t
            )
        return {
            "cross_entropy": cross_entropy.mean(),
            "reverse_kl": self._term.weight * reverse_kl.mean(),
        }

    def validate(self) -> dict[str, float]:
        """Perplexity, eq. (12) as it is in the paper, and how its estimate comes about.

        ``cross_entropy_error`` and ``loss_error`` are standard errors, over stretches of the text,
        of their changes since q_0, where fine-tuning starts: of an epoch whose weights are not
        kept, nothing else could tell them.
        """
        tensors = self.on_valid(self.model.log_q_of, self.model), *self._valid_frozen
        log_q, log_q0, log_odds = (values.double().cpu() for values in tensors)
        after, before = (finetuning_loss(q, log_q0, log_odds) for q in (log_q, log_q0))
        cross_entropy, reverse_kl = ((after[k] - before[k]).numpy() for k in range(2))
        return finetuning_measures(*tensors) | {
            "cross_entropy_error": error_of_mean(cross_entropy),
            "loss_error": error_of_mean(cross_entropy + reverse_kl),
        }


def discriminator_losses(
    q0: StreamModel, discriminator: StreamModel, tokens: Tensor, eos: int
) -> Tensor:
    """D^(q) and D^(p), eq. (6), at every one of ``tokens`` ``(N,)``: ``(N, 2)``."""

    def read(encoded0, encoded, target: Tensor) -> Tensor:
        parts = discriminator.discriminator_loss(encoded, q0.log_q(encoded0), target)
        return torch.stack(parts, dim=-1)

    return over_tokens([q0, discriminator], tokens, eos, read, VALIDATION_STREAMS)
