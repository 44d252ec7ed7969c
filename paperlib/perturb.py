"""The chosen word and the perturbed model (§3)."""

import copy

import numpy as np
import torch
from scipy.optimize import brentq
from torch import nn


def choose_word(counts: np.ndarray, candidates: np.ndarray, frequency: float) -> int:
    """The id among ``candidates`` whose training frequency is nearest to ``frequency``.

    The paper does not name its word. Its Table 1 does so indirectly: the perturbation costs
    ln(86.01/84.89) = 0.0131 nats a token and some ln(1e-3/1e-8) = 11.5 nats an occurrence, which
    makes a frequency of 0.00114. ``counts`` ``(V,)`` are occurrences in the training sentences.

    Raises ``ValueError`` when there is no candidate.
    """
    if len(candidates) == 0:
        raise ValueError("there is no word to choose from: the class of candidates is empty")
    share = counts[candidates] / counts.sum()
    return int(candidates[np.argmin(np.abs(share - frequency))])


def lower_bias(model: nn.Module, word: int, amount: float) -> nn.Module:
    """A copy of ``model`` whose output bias of ``word`` is lower by ``amount`` (nats).

    The original stays as it is, and ``lower_bias(copy, word, -amount)`` undoes the change up to
    the rounding of the bias. Raises ``ValueError`` for a word outside the vocabulary.
    """
    if not 0 <= word < model.output.out_features:
        raise ValueError(
            f"word id {word} is not in the vocabulary of {model.output.out_features} words"
        )
    perturbed = copy.deepcopy(model)
    with torch.no_grad():
        perturbed.output.bias[word] -= amount
    return perturbed


def amount_for(log_prob: np.ndarray, probability: float) -> float:
    """By how much to lower a word's bias so that its mean probability becomes ``probability``.

    ``log_prob`` holds the model's log-probabilities of the word (nats, any shape) in real
    contexts, whether or not it occurs there. With b taken off the bias, each q becomes
    q e^−b / (1 − q + q e^−b); b is where their mean is ``probability``. It is negative when the
    word is to become likelier.

    Raises ``ValueError`` when there is no context.
    """
    if log_prob.size == 0:
        raise ValueError("no context is given, so the word's mean probability is not known")
    log_prob = np.asarray(log_prob, dtype=np.float64)
    log_odds = log_prob - np.log(-np.expm1(log_prob))

    def excess(amount: float) -> float:
        return np.log(np.mean(1 / (1 + np.exp(amount - log_odds)))) - np.log(probability)

    return float(brentq(excess, -100.0, 100.0, xtol=1e-10))
