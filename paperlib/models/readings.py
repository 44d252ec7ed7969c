"""Two readings of the same logits (§2.1): softmax for q(w|c), sigmoid for r(w|c).

Logits are ``(..., V)``, targets ``(...)`` of word ids; results are in nats.
"""

import torch.nn.functional as F
from torch import Tensor


def log_q(logits: Tensor) -> Tensor:
    """log q(w|c) of every word, ``(..., V)``."""
    return F.log_softmax(logits, dim=-1)


def log_q_of(logits: Tensor, target: Tensor) -> Tensor:
    """log q(w|c) of the words ``target``, ``(...)``, without the other words' log-probabilities."""
    losses = F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none")
    return -losses.view(target.shape)


def log_r(logits: Tensor) -> tuple[Tensor, Tensor]:
    """log r(w|c) and log(1 − r(w|c)) of every word, ``(..., V)`` each."""
    return F.logsigmoid(logits), F.logsigmoid(-logits)


def log_odds_of(logits: Tensor, target: Tensor) -> Tensor:
    """log r − log(1 − r) of the words ``target``, ``(...)``: the sigmoid's logit itself."""
    return logits.gather(-1, target.unsqueeze(-1)).squeeze(-1)
