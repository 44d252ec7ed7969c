"""Shape and regularisation of the networks of section 4, as settings that models are built from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from paperlib.validated import Count, NonNegative, Positive, Settings

Rate = Annotated[float, Field(ge=0, lt=1)]


class Dropout(Settings):
    """Rates of the five places where AWD-LSTM drops, and of the mixture's latents."""

    embedding: Rate = 0.0
    """Whole words, of the lookup (Gal & Ghahramani, 2016)."""
    input: Rate = 0.0
    """Locked, on the first layer's input."""
    hidden: Rate = 0.0
    """Locked, between layers."""
    output: Rate = 0.0
    """Locked, on the last layer's output."""
    latent: Rate = 0.0
    """Locked, on the experts' latent vectors."""
    weight: Rate = 0.0
    """Recurrent weights (DropConnect; Merity et al., 2017)."""


class Block(Settings):
    """Words of similar frequency, and how many units their output weights have."""

    words: Count | None = None
    """None for the last block: all that are left."""
    units: Count


class Network(Settings):
    """AWD-LSTM with a softmax, a mixture of softmaxes, direct output connection or differentiated
    softmax.

    ``experts`` gives each layer's number of experts. ``activation`` and ``temporal`` are α and β of
    Merity et al. (2017); ``balance`` is the coefficient of the squared coefficient of variation of
    the mixture weights (Takase et al., 2018). ``blocks`` and ``projected`` belong to the
    differentiated softmax (Chen et al., 2016): see :mod:`paperlib.models.differentiated`.
    """

    head: Literal["softmax", "mos", "doc", "differentiated"]
    embedding: Count
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)]
    experts: tuple[Annotated[int, Field(ge=0)], ...] = ()
    blocks: tuple[Block, ...] = ()
    projected: bool = False
    dropout: Dropout = Dropout()
    activation: NonNegative = 0.0
    temporal: NonNegative = 0.0
    balance: NonNegative = 0.0
    init_range: Positive = 0.1

    def key(self) -> dict:
        """What the network is, as plain values, without what its head has no use for."""
        unused = set() if self.head == "differentiated" else {"blocks", "projected"}
        return self.model_dump(mode="json", exclude=unused)

    @model_validator(mode="after")
    def _experts_fit_the_head(self):
        if self.balance and sum(self.experts) < 2:
            raise ValueError("balance needs at least two experts; leave it out")
        if self.dropout.latent and not self.experts:
            raise ValueError("dropout.latent needs experts; leave it out")
        if self.head in ("softmax", "differentiated") and self.experts:
            raise ValueError(f"head {self.head!r} has no experts; leave `experts` out")
        if self.head == "differentiated":
            return self._with_blocks_that_fit()
        if self.blocks or self.projected:
            raise ValueError(
                f"head {self.head!r} has no blocks; leave `blocks` and `projected` out"
            )
        if self.head == "softmax":
            if self.hidden[-1] != self.embedding:
                raise ValueError(
                    f"head 'softmax' shares its weights with the embedding, so the last layer must "
                    f"have {self.embedding} units, not {self.hidden[-1]}"
                )
            return self
        if len(self.experts) != len(self.hidden) or not self.experts[-1]:
            raise ValueError(
                f"head {self.head!r} needs a number of experts for each of the {len(self.hidden)} "
                "layers, the last one at least 1"
            )
        inner = sum(self.experts[:-1])
        if self.head == "mos" and inner:
            raise ValueError("head 'mos' has experts on the last layer alone; 'doc' on inner ones")
        if self.head == "doc" and not inner:
            raise ValueError("head 'doc' needs experts on an inner layer; without, it is 'mos'")
        return self

    def _with_blocks_that_fit(self):
        if not self.blocks:
            raise ValueError("head 'differentiated' needs `blocks`, the most frequent words first")
        if any(block.words is None for block in self.blocks[:-1]) or self.blocks[-1].words:
            raise ValueError(
                "each block but the last needs `words`; the last one takes what is left"
            )
        units = sum(block.units for block in self.blocks)
        if not self.projected and units != self.hidden[-1]:
            raise ValueError(
                f"the blocks are slices of the last layer's {self.hidden[-1]} units, but they have "
                f"{units} in all; make these equal or set `projected`"
            )
        return self
