"""Networks and the two readings of their logits: language model and discriminator."""

from paperlib.models.awd import AWDLSTM
from paperlib.models.lstm import LSTM

__all__ = ["AWDLSTM", "LSTM"]
