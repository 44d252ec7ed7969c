"""The true distribution of the synthetic language, read like a network.

Where p is known, the best discriminator is r* = q_0/(q_0 + p) (eq. 7), whose log-odds are
log q_0 − log p; with it p̂ of eq. (8) is p itself. So "fine-tuning with the oracle" is eq. (12) with
this module in place of q_0 and r ≡ ½.
"""

import numpy as np
import torch
from torch import Tensor, nn

from paperlib.trigram import TrigramLanguage

BLOCK = 4096


class TrueModel(nn.Module):
    """log p(w|c) of every word, in the contexts of given sentences.

    The trigram probabilities of these contexts are computed once, as a table of float32.
    """

    capturable = False
    """See :class:`paperlib.models.LSTM`; that all contexts are known is looked up on the GPU."""

    def __init__(self, language: TrigramLanguage, *sentences: Tensor):
        """``sentences`` are ``(N, T)`` word ids each, all on the device that is to be used."""
        super().__init__()
        self._radix = language.n_words + 1
        codes = torch.cat([self._codes(words).flatten() for words in sentences]).unique()
        # To be looked up on the device; no part of the weights.
        self.register_buffer("_contexts", codes, persistent=False)
        table = torch.empty(len(codes), language.n_words, device=codes.device)
        known = codes.cpu().numpy()
        for start in range(0, len(known), BLOCK):
            block = known[start : start + BLOCK]
            probs = language.next_word_probs(block // self._radix, block % self._radix)
            table[start : start + BLOCK] = torch.from_numpy(np.log(probs)).float()
        self.register_buffer("_table", table, persistent=False)

    def forward(self, words: Tensor, *, mixed: bool = False) -> Tensor:
        """``(B, T, V)`` for each next word, like a network's logits, from ``(B, T)`` word ids.

        ``mixed`` is for networks and changes nothing. Raises ``ValueError`` for a context that is
        not in the given sentences.
        """
        codes = self._codes(words)
        rows = torch.searchsorted(self._contexts, codes).clamp(max=len(self._contexts) - 1)
        if not torch.equal(self._contexts[rows], codes):
            raise ValueError("a context is not among those whose true probabilities were computed")
        return self._table[rows]

    def _codes(self, words: Tensor) -> Tensor:
        """One number for the last two words of each context, where 0 is the start token."""
        padded = nn.functional.pad(words + 1, (2, 0))
        return padded[:, :-2] * self._radix + padded[:, 1:-1]
