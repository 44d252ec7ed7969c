"""AWD-LSTM (Merity et al., 2017) with the heads of section 4.

Shapes: T time steps, B streams, V words, E embedding units, H units of a layer.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.models import dropout as drop
from paperlib.models import fused
from paperlib.models.differentiated import Differentiated
from paperlib.models.heads import Mixture, Softmax
from paperlib.models.recurrent import lstm
from paperlib.models.stream import State
from paperlib.network import Network

HEADS = {"softmax": Softmax, "mos": Mixture, "doc": Mixture, "differentiated": Differentiated}


class LSTMLayer(nn.Module):
    """One LSTM layer whose recurrent weights can be dropped.

    The weights are handed to the LSTM kernel on each call, so that it really uses the dropped ones:
    a module's own LSTM would go on with the weights it has registered.
    """

    def __init__(self, inputs: int, units: int):
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(4 * units, inputs))
        self.weight_hh = nn.Parameter(torch.empty(4 * units, units))
        self.bias_ih = nn.Parameter(torch.empty(4 * units))
        self.bias_hh = nn.Parameter(torch.empty(4 * units))

    def forward(
        self, inputs: Tensor, state: State, rate: float, generator: torch.Generator | None
    ) -> tuple[Tensor, State]:
        """Outputs ``(T, B, H)`` for ``inputs`` ``(T, B, …)``, and the new state, two ``(B, H)``."""
        weight_hh = drop.weights(self.weight_hh, rate, generator)
        weights = [self.weight_ih, weight_hh, self.bias_ih, self.bias_hh]
        hidden, cell = (part.unsqueeze(0) for part in state)
        outputs, hidden, cell = lstm(inputs, (hidden, cell), weights)
        return outputs, (hidden[0].detach(), cell[0].detach())


class Encoded(NamedTuple):
    """What an AWD-LSTM makes of a piece of text."""

    layers: tuple[Tensor, ...]
    """``(T, B, H)`` outputs of each layer, after dropout."""
    last: Tensor
    """``(T, B, H)`` output of the last layer before dropout."""
    head: tuple[Tensor, ...]
    """What the head keeps of them."""


class AWDLSTM(nn.Module):
    """A :class:`paperlib.models.stream.StreamModel`: embedding, LSTM layers and a head.

    All heads but the differentiated softmax share their output weights with the embedding.
    """

    piece = None

    def __init__(self, n_words: int, network: Network, generator: torch.Generator):
        """Initialise from ``generator``; nothing is drawn from the global random state.

        The embedding is uniform in ±``network.init_range``, the output bias zero, every other
        weight uniform in ±1/√(units it belongs to).
        """
        super().__init__()
        self.network = network
        with torch.device("meta"):  # so that PyTorch's own initialisation draws nothing
            self.embedding = nn.Parameter(torch.empty(n_words, network.embedding))
            sizes = (network.embedding, *network.hidden)
            self.layers = nn.ModuleList(map(LSTMLayer, sizes[:-1], sizes[1:]))
            self.head = HEADS[network.head](n_words, network)
        self.to_empty(device="cpu")
        with torch.no_grad():
            self.embedding.uniform_(-network.init_range, network.init_range, generator=generator)
            for layer, units in zip(self.layers, network.hidden, strict=True):
                for weights in layer.parameters():
                    weights.uniform_(-(units**-0.5), units**-0.5, generator=generator)
            self.head.initialise(generator)

    @property
    def n_words(self) -> int:
        """Size V of the vocabulary."""
        return len(self.embedding)

    @property
    def capturable(self) -> bool:
        """See :class:`paperlib.models.stream.StreamModel`."""
        # The differentiated head has to know how many words each of its blocks gets.
        return self.network.head != "differentiated" and fused.has_kernels(self.embedding.device)

    def start(self, streams: int) -> State:
        """Zeros: hidden and cell state of each layer, ``(B, H)``."""
        return tuple(
            self.embedding.new_zeros(streams, units) for units in self.network.hidden for _ in "hc"
        )

    def encode(
        self, words: Tensor, state: State, dropout: torch.Generator | None = None
    ) -> tuple[Encoded, State]:
        """See :class:`paperlib.models.stream.StreamModel`."""
        rates = self.network.dropout
        values = F.embedding(words, self.embedding)
        values = drop.words(values, words, self.n_words, rates.embedding, dropout)
        values = drop.locked(values, rates.input, dropout)
        layers, after = [], []
        for number, layer in enumerate(self.layers):
            raw, new = layer(values, state[2 * number : 2 * number + 2], rates.weight, dropout)
            after += new
            raw = raw.to(self.embedding.dtype)
            is_last = number == len(self.layers) - 1
            values = drop.locked(raw, rates.output if is_last else rates.hidden, dropout)
            layers.append(values)
        layers = tuple(layers)
        # Under autocast only the recurrent layers are of low precision: it would blur log q.
        with torch.autocast(words.device.type, enabled=False):
            head = self.head.prepare(layers, dropout)
        state = tuple(part.to(self.embedding.dtype) for part in after)
        return Encoded(layers, raw, head), state

    def log_q(self, encoded: Encoded) -> Tensor:
        """See :class:`paperlib.models.stream.StreamModel`."""
        return self.head.log_q(encoded.head, self.embedding)

    def log_q_of(self, encoded: Encoded, target: Tensor) -> Tensor:
        """See :class:`paperlib.models.stream.StreamModel`."""
        return self.head.log_q_of(encoded.head, self.embedding, target)

    def log_r(self, encoded: Encoded) -> tuple[Tensor, Tensor]:
        """See :class:`paperlib.models.stream.StreamModel`."""
        return self.head.log_r(encoded.head, self.embedding)

    def log_odds_of(self, encoded: Encoded, target: Tensor) -> Tensor:
        """See :class:`paperlib.models.stream.StreamModel`."""
        return self.head.log_odds_of(encoded.head, self.embedding, target)

    def discriminator_loss(
        self, encoded: Encoded, log_q0: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`paperlib.models.stream.StreamModel`."""
        return self.head.discriminator_loss(encoded.head, self.embedding, log_q0, target)

    def regularisation(self, encoded: Encoded) -> Tensor:
        """α · mean h² of the last layer, dropped, + β · mean (h_t − h_{t−1})² of it undropped,
        + the balance of the mixture weights."""
        network, last = self.network, encoded.last
        total = network.activation * encoded.layers[-1].pow(2).mean()
        if network.temporal and len(last) > 1:
            total = total + network.temporal * (last[1:] - last[:-1]).pow(2).mean()
        if network.balance:
            total = total + network.balance * self.head.imbalance(encoded.head)
        return total
