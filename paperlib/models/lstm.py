"""The recurrent network of the synthetic study (appendix A), without any regularisation.

Shapes: B sentences, T words a sentence, V words in the vocabulary. Word *ids* are 0…V−1 (the word
number of appendix A less one); the id V is the start token, which is read but never predicted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib import settings
from paperlib.models.products import linear
from paperlib.models.recurrent import lstm


class LSTM(nn.Module):
    """An LSTM over sentences, read as a language model or as a discriminator.

    The two differ "only in the interpretation of logits" (§2.1): softmax for q(w|c), sigmoid for
    r(w|c), so both are this class.
    """

    capturable = True
    """Whether a GPU can replay it, for it is never waited for."""

    def __init__(self, n_words: int, shape: settings.Model, generator: torch.Generator):
        """Initialise from ``generator``; nothing is drawn from the global random state.

        Embeddings and output weights are uniform in ±``shape.init_range``, the output bias is
        zero, and the recurrent weights are uniform in ±1/√hidden.
        """
        super().__init__()
        with torch.device("meta"):  # so that PyTorch's own initialisation draws nothing
            self.embedding = nn.Embedding(n_words + 1, shape.embedding)
            self.recurrent = nn.LSTM(shape.embedding, shape.hidden, shape.layers)
            self.output = nn.Linear(shape.hidden, n_words)
        self.to_empty(device="cpu")
        with torch.no_grad():
            for weights in (self.embedding.weight, self.output.weight):
                weights.uniform_(-shape.init_range, shape.init_range, generator=generator)
            self.output.bias.zero_()
            bound = shape.hidden**-0.5
            for weights in self.recurrent.parameters():
                weights.uniform_(-bound, bound, generator=generator)

    @property
    def n_words(self) -> int:
        """Size V of the vocabulary, without the start token."""
        return self.output.out_features

    @property
    def start(self) -> int:
        """Id of the start token."""
        return self.n_words

    def forward(self, words: Tensor, *, mixed: bool = False) -> Tensor:
        """Logits ``(B, T, V)`` for each next word, given ``words`` ``(B, T)`` of ids.

        The context of ``logits[:, t]`` is the start token and ``words[:, :t]``, so the last
        column of ``words`` is never read. With ``mixed`` the recurrent layers work in bfloat16;
        logits are computed and returned in the dtype of the parameters, because bfloat16 would blur
        log q by some hundredths of a nat.
        """
        inputs = F.pad(words[:, :-1], (1, 0), value=self.start).T
        recurrent, values = self.recurrent, self.embedding(inputs)
        zeros = values.new_zeros(recurrent.num_layers, len(words), recurrent.hidden_size)
        weights = [weight for layer in recurrent.all_weights for weight in layer]
        with torch.autocast(words.device.type, torch.bfloat16, enabled=mixed):
            hidden, *_ = lstm(values, (zeros, zeros), weights, recurrent.num_layers)
        hidden = hidden.transpose(0, 1).to(self.output.weight.dtype)
        return linear(hidden, self.output.weight, self.output.bias)
