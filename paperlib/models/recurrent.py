"""A call of PyTorch's LSTM kernel with weights that are handed to it."""

from collections.abc import Sequence

import torch
from torch import Tensor

State = tuple[Tensor, Tensor]
"""Hidden and cell state, ``(layers, B, H)`` each."""


def lstm(
    inputs: Tensor, state: State, weights: Sequence[Tensor], layers: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs ``(T, B, H)`` for ``inputs`` ``(T, B, …)``, hidden and cell state after them.

    ``weights`` are those of :class:`torch.nn.LSTM`, four a layer. Under autocast all is computed
    and returned in bfloat16.
    """
    training = torch.is_grad_enabled()  # whether the kernel keeps what its gradient needs
    options = (True, layers, 0.0, training, False, False)
    if not (inputs.is_cuda and torch.is_autocast_enabled("cuda")):
        return torch.lstm(inputs, state, list(weights), *options)
    # Autocast has cuDNN compute in float16, whatever it was told; small gradients vanish there.
    hidden, cell, inputs, *weights = (
        part.to(torch.bfloat16) for part in (*state, inputs, *weights)
    )
    with torch.autocast("cuda", enabled=False):
        return torch.lstm(inputs, (hidden, cell), weights, *options)
