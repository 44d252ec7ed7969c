"""One network on one text: from training to fine-tuning, each step trained or found again.

What sections 4.1 and 4.2 do with a corpus and section 4.3 with text that comes in parts.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import save_file

from paperlib import hardware, stages
from paperlib.checkpoints import load_arrays, save
from paperlib.evaluation import perplexity
from paperlib.losses import finetuning_loss
from paperlib.models import AWDLSTM
from paperlib.network import Network
from paperlib.remembered import anew
from paperlib.settings import StreamTraining
from paperlib.stages import Trained
from paperlib.stream_tasks import (
    DiscriminatorStreams,
    FinetuningStreams,
    LanguageModelStreams,
    discriminator_losses,
)
from paperlib.stream_text import Text, on_device
from paperlib.streams import VALIDATION_STREAMS, over_tokens

OPTIONS = {
    "discriminator": (False, True),
    "dropout_discriminator": (True, True),
    "no_discriminator": (False, False),
    "dropout_no_discriminator": (True, False),
}
"""The rows of Table 2 by name: with dropout? with discriminator?"""

TITLES = {
    "language_model": "language model",
    "second_run": "second run",
    "cross_entropy": "fine-tuning (cross-entropy alone)",
    "cross_entropy_dropout": "fine-tuning (cross-entropy alone, with dropout)",
}
"""Of the progress bars of trainings by cross-entropy, by stage."""

BEST = "discriminator"
"""The option that the paper takes to Table 3, and to section 4.3."""


class Trainings(Protocol):
    """Settings of a network and of its trainings."""

    network: Network
    language_model: StreamTraining
    second_run: StreamTraining | None
    discriminator: StreamTraining
    finetuning: StreamTraining


class TextStudy:
    """Language model, discriminator and fine-tuning on one text, for one seed.

    ``text`` has ``n_words`` and ``test`` beside what the trainings ask of it; ``text_key`` holds
    what it depends on, as plain values; ``kind`` begins the names of the stages. ``once`` is told
    what frozen models say at each token of the text, which may be too long to remember it.
    """

    kind: str

    def __init__(
        self,
        settings: Trainings,
        name: str,
        text: Text,
        text_key: dict,
        seed: int,
        once: Callable[[tuple, Callable[[], torch.Tensor]], torch.Tensor] = anew,
    ):
        self.settings = settings
        self.name = name
        self.text = text
        self.seed = seed
        self.device = hardware.device()
        self._text_key = text_key
        self._once = once

    # Models

    @cached_property
    def first_run(self) -> Trained:
        """The language model after its first training: SGD, then averaged SGD."""
        return self._language_model("language_model", self.settings.language_model)

    @cached_property
    def initial(self) -> Trained:
        """The initial model: after the second run, of averaged SGD, where the profile has one."""
        training, first = self.settings.second_run, self.first_run
        if training is None:
            return first
        return self._language_model("second_run", training, {"start": first.folder.name}, first)

    @cached_property
    def discriminator(self) -> Trained:
        """The discriminator between the text and the initial model, trained from scratch."""
        return self.discriminator_by(self.settings.discriminator)

    def discriminator_by(self, training: StreamTraining, title: str = "discriminator") -> Trained:
        """The same by any training; ``title`` is that of its progress bar."""
        q0 = self.initial
        return stages.train(
            f"{self.kind}_discriminator",
            self._data_key | {"q0": q0.folder.name},
            training,
            self.new_model(stream=1),
            lambda model: DiscriminatorStreams(*self._task(title, model, training), q0=q0.model),
        )

    def finetuned(self, option: str = BEST, learning_rate: float | None = None) -> Trained:
        """The initial model fine-tuned in one of the ways of ``OPTIONS``, at the profile's rate or
        at another one.

        "Without dropout" is without the network's other regularisation too.
        """
        with_dropout, with_discriminator = OPTIONS[option]
        rate = learning_rate or self.settings.finetuning.learning_rate
        update = {"regularised": with_dropout, "learning_rate": rate}
        training = self.settings.finetuning.model_copy(update=update)
        q0 = self.initial
        discriminator = self.discriminator if with_discriminator else None
        key = self._data_key | {"q0": q0.folder.name, "discriminator": None}
        if discriminator is not None:
            key["discriminator"] = discriminator.folder.name
        return stages.train(
            f"{self.kind}_finetuning",
            key,
            training,
            self.new_model(stream=0),
            lambda model: FinetuningStreams(
                *self._task(
                    f"fine-tuning ({option.replace('_', ' ')})",
                    stages.starting_from(q0.model, model),
                    training,
                ),
                q0=q0.model,
                discriminator=discriminator and discriminator.model,
                once=self._once,
            ),
        )

    def cross_entropy_at(
        self, learning_rate: float | None = None, *, with_dropout: bool = False
    ) -> Trained:
        """The initial model trained on as fine-tuning does it, at its rate or at another one, but
        by cross-entropy alone; with dropout it only goes on with the training that it had."""
        rate = learning_rate or self.settings.finetuning.learning_rate
        update = {"regularised": with_dropout, "learning_rate": rate}
        training = self.settings.finetuning.model_copy(update=update)
        stage = "cross_entropy_dropout" if with_dropout else "cross_entropy"
        q0 = self.initial
        return self._language_model(stage, training, {"q0": q0.folder.name}, q0)

    @cached_property
    def cross_entropy(self) -> Trained:
        """The control, which fine-tuning is held against: cross-entropy alone."""
        return self.cross_entropy_at()

    def options(self) -> list[str]:
        """The ways of fine-tuning that are run."""
        return [BEST]

    @property
    def has_control(self) -> bool:
        """Whether cross-entropy alone is run beside them."""
        return True

    def models(self) -> dict[str, Trained]:
        """The initial model and all that fine-tuning makes of it, the control last."""
        models = {"initial": self.initial}
        models |= {option: self.finetuned(option) for option in self.options()}
        return models | ({"cross_entropy": self.cross_entropy} if self.has_control else {})

    # Measures

    def perplexities(self, trained: Trained) -> dict[str, float]:
        """Perplexity on the validation and test text, every predicted token counted once."""
        return {split: perplexity(log_q) for split, log_q in self.token_log_probs(trained).items()}

    def token_log_probs(self, trained: Trained) -> dict[str, np.ndarray]:
        """Log-probability of every validation and test token, ``(N,)`` float32, nats."""

        def compute(folder: Path) -> None:
            values = {split: self.log_q(trained, split).cpu() for split in ("valid", "test")}
            save(folder / "log_q.safetensors", lambda file: save_file(values, file))

        folder = stages.once(
            f"{self.kind}_log_q", self._data_key | {"model": trained.address}, compute
        )
        return load_arrays(folder / "log_q.safetensors")

    def valid_log_odds(self) -> np.ndarray:
        """The discriminator's log r − log(1 − r) at every validation token, ``(N,)`` float32."""

        def compute(folder: Path) -> None:
            values = {"log_odds": self._over("valid", self.discriminator, "log_odds_of").cpu()}
            save(folder / "log_odds.safetensors", lambda file: save_file(values, file))

        key = {"discriminator": self.discriminator.address}
        folder = stages.once(f"{self.kind}_log_odds", self._data_key | key, compute)
        return load_arrays(folder / "log_odds.safetensors")["log_odds"]

    def valid_parts(self, trained: Trained, option: str = BEST) -> tuple[np.ndarray, np.ndarray]:
        """Eq. (12)'s two parts at every validation token, −log q and t log t, as fine-tuning by
        this option takes them: ``(N,)`` float64 each, nats."""
        log_q, log_q0 = (self.token_log_probs(one)["valid"] for one in (trained, self.initial))
        _, with_discriminator = OPTIONS[option]
        log_odds = self.valid_log_odds() if with_discriminator else np.zeros_like(log_q)
        tensors = (torch.from_numpy(values).double() for values in (log_q, log_q0, log_odds))
        cross_entropy, reverse_kl = finetuning_loss(*tensors)
        return cross_entropy.numpy(), reverse_kl.numpy()

    def discriminator_losses(self, discriminator: Trained | None = None) -> np.ndarray:
        """D of eq. (6) at every validation token, ``(N,)`` float32, nats, of the experiment's own
        discriminator or of another one."""
        discriminator = discriminator or self.discriminator

        def compute(folder: Path) -> None:
            models = self.initial.model, discriminator.model
            parts = discriminator_losses(*models, self._tokens("valid"), self.text.eos)
            values = {"d": parts.sum(dim=-1).cpu()}
            save(folder / "d.safetensors", lambda file: save_file(values, file))

        key = {"q0": self.initial.address, "discriminator": discriminator.address}
        folder = stages.once(f"{self.kind}_d", self._data_key | key, compute)
        return load_arrays(folder / "d.safetensors")["d"]

    # Parts

    def _language_model(
        self,
        stage: str,
        training: StreamTraining,
        key: dict | None = None,
        start: Trained | None = None,
    ) -> Trained:
        """Trained by cross-entropy, from scratch or from the weights of ``start``."""

        def make_task(model: AWDLSTM) -> LanguageModelStreams:
            if start is not None:
                model = stages.starting_from(start.model, model)
            return LanguageModelStreams(*self._task(TITLES[stage], model, training))

        return stages.train(
            f"{self.kind}_{stage}",
            self._data_key | (key or {}),
            training,
            self.new_model(stream=0),
            make_task,
        )

    def trainings(self) -> Iterator[tuple[str, Trained]]:
        """All trainings of the experiment by name, each trained when it is reached."""
        yield "language_model", self.first_run
        if self.settings.second_run is not None:
            yield "second_run", self.initial
        yield "discriminator", self.discriminator
        for option in self.options():
            yield f"finetuning_{option}", self.finetuned(option)
        if self.has_control:
            yield "finetuning_cross_entropy", self.cross_entropy_at()

    def log_q(self, trained: Trained, split: str) -> torch.Tensor:
        """Log-probability of every token of a split, ``(N,)`` on the device, nats."""
        return self._over(split, trained, "log_q_of")

    def _over(self, split: str, trained: Trained, read: str) -> torch.Tensor:
        """What the model's method ``read`` says at every token of a split, ``(N,)``."""
        text, model = self._tokens(split), trained.model
        return over_tokens([model], text, self.text.eos, getattr(model, read), VALIDATION_STREAMS)

    def _tokens(self, split: str) -> torch.Tensor:
        return on_device(getattr(self.text, split), self.device)

    def _task(self, title: str, model: AWDLSTM, training: StreamTraining) -> tuple:
        return f"{title} ({self.name})", model, self.text, training, self.seed

    def new_model(self, stream: int = 0) -> AWDLSTM:
        """A network as it is before training, from one or the other stream of randomness."""
        generator = torch.Generator().manual_seed(2 * self.seed + stream)
        return AWDLSTM(self.text.n_words, self.settings.network, generator).to(self.device)

    @cached_property
    def _data_key(self) -> dict:
        return {
            "seed": self.seed,
            "network": self.settings.network.key(),
        } | self._text_key
