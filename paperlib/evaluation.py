"""What is measured of a model: perplexity, the rows of Table 1, and what fine-tuning minimises."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.losses import finetuning_loss, log_t

BATCH_SIZE = 1024


@dataclass(frozen=True)
class FrequencyClasses:
    """Words by their frequency in the training sentences (§3); arrays hold word ids.

    ``rare`` is every word that is not frequent; ``almost_frequent`` is its most frequent part.
    """

    counts: np.ndarray
    frequent: np.ndarray
    almost_frequent: np.ndarray
    rare: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, n_words: int, frequent: int, almost_frequent: int):
        """Count the word ids of the training sentences; ties go to the smaller id."""
        counts = np.bincount(np.ravel(ids), minlength=n_words)
        order = np.argsort(-counts, kind="stable")
        until = frequent + almost_frequent
        return cls(counts, order[:frequent], order[frequent:until], order[frequent:])

    def shares(self) -> tuple[float, float, float]:
        """Shares of the training words that are frequent, almost frequent and other."""
        frequent, almost, rare = (
            self.counts[words].sum() / self.counts.sum()
            for words in (self.frequent, self.almost_frequent, self.rare)
        )
        return float(frequent), float(almost), float(rare - almost)


@torch.no_grad()
def over_batches(
    model: nn.Module, sentences: Tensor, read: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """``read(logits, words)`` for all ``sentences`` ``(N, T)``, in float32 and without dropout.

    The result is on the device of ``sentences``.
    """
    model.eval()
    return torch.cat([read(model(batch), batch) for batch in sentences.split(BATCH_SIZE)])


def perplexity(log_probs: np.ndarray | Tensor) -> float:
    """exp of the mean negative log-probability (nats a token) over all tokens, in float64."""
    if isinstance(log_probs, Tensor):
        log_probs = log_probs.cpu()
    return float(np.exp(-np.mean(np.asarray(log_probs, dtype=np.float64))))


def finetuning_measures(log_q: Tensor, log_q0: Tensor, log_odds: Tensor) -> dict[str, float]:
    """Perplexity, and eq. (12) with its reverse KL divergence, over all tokens in float64.

    Arguments are values at the true next words, any shape, nats. t has heavy tails, so the largest
    t is reported too, and the share of tokens that effectively contribute to the estimated
    divergence, (Σ|x|)²/(n Σx²) with x = t log t.
    """
    log_q, log_q0, log_odds = (values.double() for values in (log_q, log_q0, log_odds))
    cross_entropy, reverse_kl = finetuning_loss(log_q, log_q0, log_odds)
    squares = (reverse_kl**2).sum().clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "perplexity": float(cross_entropy.mean().exp()),
        "loss": float((cross_entropy + reverse_kl).mean()),
        "reverse_kl": float(reverse_kl.mean()),
        "largest_t": float(log_t(log_q, log_q0, log_odds).max().exp()),
        "effective_share": float(reverse_kl.abs().sum() ** 2 / squares) / reverse_kl.numel(),
    }


TABLE1_SUMS = ("all", "frequent", "rare", "other", "rare_other")
"""Sets of test words whose log-probabilities Table 1 sums; *other* is all but the chosen word."""


def table1_sums(
    log_q: np.ndarray, log_p: np.ndarray, ids: np.ndarray, classes: FrequencyClasses, chosen: int
) -> np.ndarray:
    """``(N, K)`` float64: the sums over each test sentence that Table 1 is made of.

    ``log_q``, ``log_p`` and ``ids`` are ``(N, T)``: the model's and the true log-probability
    (nats) of each test word, and its id. The columns are number of words and sum of log q for each
    set of ``TABLE1_SUMS``, then the sums of log q − log p and of its square.
    """
    log_q = np.asarray(log_q, dtype=np.float64)
    frequent, other = np.isin(ids, classes.frequent), ids != chosen
    sets = np.ones_like(other), frequent, ~frequent, other, other & ~frequent
    difference = log_q - log_p
    values = [values for chosen_set in sets for values in (chosen_set, log_q * chosen_set)]
    return np.stack([v.sum(axis=1) for v in (*values, difference, difference**2)], axis=-1)


def table1_from_sums(sums: np.ndarray) -> dict[str, np.ndarray]:
    """A row of Table 1 from totals ``(..., K)`` of :func:`table1_sums`; values are ``(...)``.

    Beside the paper's columns, the perplexities on all words and on the rare words but the chosen
    one. ``diff_std`` is the population's standard deviation.
    """
    parts = np.moveaxis(sums, -1, 0)
    with np.errstate(invalid="ignore", divide="ignore"):  # a set without a word has no perplexity
        perplexities = {
            name: np.exp(-parts[2 * k + 1] / parts[2 * k]) for k, name in enumerate(TABLE1_SUMS)
        }
    mean, square = parts[-2] / parts[0], parts[-1] / parts[0]
    return {
        "test_ppl": perplexities["all"],
        "freq_ppl": perplexities["frequent"],
        "rare_ppl": perplexities["rare"],
        "ratio": perplexities["rare"] / perplexities["frequent"],
        "diff_mean": mean,
        "diff_std": np.sqrt(np.maximum(square - mean**2, 0)),
        "other_ppl": perplexities["other"],
        "rare_other_ppl": perplexities["rare_other"],
    }


def table1_row(
    log_q: np.ndarray, log_p: np.ndarray, ids: np.ndarray, classes: FrequencyClasses, chosen: int
) -> dict[str, float]:
    """One row of Table 1; arguments as for :func:`table1_sums`."""
    row = table1_from_sums(table1_sums(log_q, log_p, ids, classes, chosen).sum(axis=0))
    return {name: float(value) for name, value in row.items()}
