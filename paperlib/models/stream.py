"""What section 4 asks of a model of running text, and how any network becomes one.

Shapes: T time steps, B streams, V words. Log-probabilities are in nats.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paperlib.losses import discriminator_loss
from paperlib.models import readings

State = tuple[Tensor, ...]
"""What a model remembers between two pieces of text; the first axis of each tensor is the stream.
Empty where a model remembers nothing."""


class ModelError(ValueError):
    """A network is none that can be trained here; the message is one sentence for the user."""


class StreamModel(Protocol):
    """A network read as a language model, q, or as a discriminator, r (§2.1).

    ``encode`` reads words; what it returns stands for the contexts after each of them and is what
    all other methods take. ``target`` holds the words that follow.
    """

    piece: int | None
    """Of a model that remembers nothing: how many words it reads at once. A word's context is what
    stands before it in its piece, so that all text is cut in the same places: pieces of this many
    words, from the beginning of a stream. None: the state says all, wherever text is cut."""

    capturable: bool
    """Whether nothing here waits for the GPU, so that it can replay a whole step as one graph. Not
    where it is missing."""

    def start(self, streams: int) -> State:
        """The state before the first word."""

    def encode(
        self, words: Tensor, state: State, dropout: torch.Generator | None = None
    ) -> tuple[Any, State]:
        """Read ``words`` ``(T, B)``; the state returned is detached.

        There is dropout if and only if ``dropout`` gives the randomness for it.
        """

    def log_q(self, encoded) -> Tensor:
        """log q(w|c) of all words, ``(T, B, V)``."""

    def log_q_of(self, encoded, target: Tensor) -> Tensor:
        """log q(w|c) of the words ``target``, ``(T, B)``."""

    def log_r(self, encoded) -> tuple[Tensor, Tensor]:
        """log r(w|c) and log(1 − r(w|c)) of all words, ``(T, B, V)`` each."""

    def log_odds_of(self, encoded, target: Tensor) -> Tensor:
        """log r − log(1 − r) of the words ``target``, ``(T, B)``."""

    def discriminator_loss(self, encoded, log_q0: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Eq. (6) against ``log_q0`` ``(T, B, V)``: D^(q) and D^(p), ``(T, B)`` each."""

    def regularisation(self, encoded) -> Tensor:
        """What is added to the mean loss per token in regularised training, a scalar."""


class FromLogits(nn.Module):
    """The stream model of any network that maps words ``(T, B)`` to logits ``(T, B, V)``.

    Softmax makes them q, a sigmoid makes them r. As a language model, log-probabilities do as well,
    as softmax leaves them as they are; a discriminator's logits must be free: a sigmoid of
    log-probabilities never exceeds ½. The network sees ``piece`` words at a time and remembers
    nothing of those before; trainings have to say ``bptt = piece``.
    """

    capturable = False  # nobody knows what the network does

    def __init__(self, network: nn.Module, piece: int = 70):
        super().__init__()
        self.network = network
        self.piece = piece

    @torch.no_grad()
    def check(self, n_words: int) -> int:
        """V, of a network that reads the words 0…``n_words`` − 1 as a language model has to.

        Raises :class:`ModelError` where it cannot read them, returns something else than
        ``(T, B, V)``, or where logits depend on words that come later or are in other streams.
        """
        self.network.eval()
        device = next(self.parameters()).device
        shape = min(self.piece, 6), 3
        draws = torch.Generator().manual_seed(0)
        words = torch.randint(n_words, shape, generator=draws).to(device)
        words[0, 0] = n_words - 1
        try:
            logits = self.network(words)
            if words.is_cuda:  # which says only later that there is no such word
                torch.cuda.synchronize()
        except Exception as error:
            raise ModelError(
                f"the network cannot read words of shape {shape}, T steps of B texts, with ids "
                f"below {n_words} ({type(error).__name__}: {error})"
            ) from error
        if not isinstance(logits, Tensor):
            raise ModelError(
                f"the network returns a {type(logits).__name__}; let it return the logits alone, a "
                "tensor (T, B, V)"
            )
        if logits.dim() != 3 or logits.shape[:2] != shape or logits.shape[2] < n_words:
            raise ModelError(
                f"for words of shape {shape}, T steps of B texts, the network returns "
                f"{tuple(logits.shape)}; it has to be (T, B, V) with a V of at least {n_words}"
            )
        if torch.equal(logits, self.network(words)):  # else it draws something even here
            self._check_contexts(words, logits, n_words)
        return logits.shape[2]

    def _check_contexts(self, words: Tensor, logits: Tensor, n_words: int) -> None:
        allowed = 100 * torch.finfo(logits.dtype).eps * logits.abs().max()

        def changed(at: tuple, where: tuple) -> bool:
            others = words.clone()
            others[at] = (others[at] + 1) % n_words
            difference = (self.network(others) - logits)[where]
            return bool((difference.abs() > allowed).any())

        if changed((-1, slice(None)), (slice(-1),)):
            raise ModelError(
                "the network's logits depend on words that come later, which a language model must "
                "not see; mask them"
            )
        if changed((slice(None), 0), (slice(None), slice(1, None))):
            raise ModelError(
                "the network's logits for one text depend on the words of another; words are "
                "(T, B), with the steps first (`batch_first=False`)"
            )

    def start(self, streams: int) -> State:
        """Nothing to remember."""
        return ()

    def encode(self, words: Tensor, state: State, dropout=None) -> tuple[Tensor, State]:
        """The logits, in float32 where they come in less.

        With ``dropout`` the network is in training mode, and its own dropout modules draw what
        that generator says; without, it is in evaluation mode.
        """
        self.network.train(dropout is not None)
        with torch.random.fork_rng(_devices(words), enabled=dropout is not None):
            if dropout is not None:
                seed = torch.randint(2**62, (), generator=dropout, device=dropout.device)
                torch.manual_seed(seed.item())
            with _recurrent_layers(self.network, words.device):
                logits = self.network(words)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)), state

    def log_q(self, encoded: Tensor) -> Tensor:
        """See :class:`StreamModel`."""
        return readings.log_q(encoded)

    def log_q_of(self, encoded: Tensor, target: Tensor) -> Tensor:
        """See :class:`StreamModel`."""
        return readings.log_q_of(encoded, target)

    def log_r(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`StreamModel`."""
        return readings.log_r(encoded)

    def log_odds_of(self, encoded: Tensor, target: Tensor) -> Tensor:
        """See :class:`StreamModel`."""
        return readings.log_odds_of(encoded, target)

    def discriminator_loss(
        self, encoded: Tensor, log_q0: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See :class:`StreamModel`."""
        return discriminator_loss(log_q0, *readings.log_r(encoded), target)

    def regularisation(self, encoded: Tensor) -> Tensor:
        """None."""
        return encoded.new_zeros(())


@contextmanager
def _recurrent_layers(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Let cuDNN have gradients of PyTorch's recurrent layers, whatever the mode, and no float16.

    It has them in training mode alone, where dropout of rate 0 leaves them in no other way than
    evaluation does; and under autocast it computes in float16, where small gradients vanish.
    """
    layers = [part for part in network.modules() if isinstance(part, nn.RNNBase)]
    still = [part for part in layers if not part.training and torch.is_grad_enabled()]
    rates = [part.dropout for part in still]
    in_float32 = bool(layers) and device.type == "cuda"
    for part in still:
        part.train()
        part.dropout = 0.0
    try:
        with torch.autocast("cuda", enabled=False) if in_float32 else nullcontext():
            yield
    finally:
        for part, rate in zip(still, rates, strict=True):
            part.eval()
            part.dropout = rate


def _devices(words: Tensor) -> list[torch.device]:
    """Whose random state ``fork_rng`` puts back, beside the CPU's."""
    return [words.device] if words.is_cuda else []
