"""Training steps of the synthetic study: language model, discriminator, fine-tuning.

The alternatives are written as the well-known example of a word language model writes them:
modules, a criterion on all logits, an optimiser step in a loop over the parameters.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import (
    PRECISIONS,
    Benchmark,
    Case,
    Work,
    parameters,
    precision,
    precision_name,
    step_bytes,
)
from paperlib import hardware, settings
from paperlib.evaluation import over_batches
from paperlib.losses import finetuning_loss
from paperlib.models import LSTM
from paperlib.models.readings import log_odds_of, log_q_of
from paperlib.tasks import DiscriminatorTask, FinetuningTask, LanguageModelTask, Split
from paperlib.training import Trainer

LENGTH = 10


class Setting:
    """A network of the study, a batch of random sentences, and everything a step needs."""

    def __init__(self, profile: str, words: int = 1000, batch: int | None = None, mixed=False):
        synthetic = settings.load(profile).synthetic
        self.shape, self.training = synthetic.model, synthetic.language_model
        self.words, self.mixed, self.device = words, mixed, hardware.device()
        batch = batch or self.training.batch_size
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(words, (batch, LENGTH), generator=generator).to(self.device)
        self.split = Split(text, text[: max(1, batch // 10)])
        self.batch = torch.arange(batch, device=self.device)
        self.tokens = text.numel()

    def network(self, seed: int = 0) -> LSTM:
        """A new network."""
        generator = torch.Generator().manual_seed(seed)
        return LSTM(self.words, self.shape, generator).to(self.device)

    def trainer(self, kind: type, model: LSTM, **options) -> Trainer:
        """As the library trains; no checkpoint is written."""
        task = kind("", model, self.split, seed=0, mixed=self.mixed, **options)
        return Trainer(task, self.training, None)

    def step(self, kind: type, **options) -> Callable[[], float]:
        """A step as the library does it: gradients, clipping, update."""
        trainer = self.trainer(kind, self.network(), **options)

        def step() -> float:
            trainer.step(self.batch)
            return trainer.loss()

        return step

    def work(self, steps: int = 0, forward: int = 0, mixed: bool | None = None) -> Work:
        """Of training steps (forward and backward, three passes) and of forward passes beside."""
        units, layers = self.shape.hidden, self.shape.layers
        recurrent = 2 * 4 * units * (self.shape.embedding + units * (2 * layers - 1))
        operations = self.tokens * (recurrent + 2 * units * self.words)
        model = self.network()
        return Work(
            (3 * steps + forward) * operations,
            steps * step_bytes(model) + forward * 4 * parameters(model),
            self.mixed if mixed is None else mixed,
        )

    def plain_steps(self, name: str, loss_of) -> dict[str, Callable[[], float]]:
        """Steps as people write them, by way; ``loss_of(logits, words, mixed)`` is the mean loss
        per token."""
        steps = {name: self._plain_step(loss_of, self.mixed)}
        if self.mixed:
            steps[f"{name}, float32"] = self._plain_step(loss_of, False)
        return steps

    def _plain_step(self, loss_of, mixed: bool) -> Callable[[], float]:
        model, training = self.network(), self.training

        def step() -> float:
            model.zero_grad()
            words = self.split.train[self.batch]
            with precision(mixed):
                loss = loss_of(model.output(self._hidden(model, words)), words, mixed)
            (loss * LENGTH).backward()
            nn.utils.clip_grad_norm_(model.parameters(), training.clip)
            for parameter in model.parameters():
                parameter.data.add_(parameter.grad, alpha=-training.learning_rate)
            return loss.item()

        return step

    @staticmethod
    def _hidden(model: LSTM, words: Tensor) -> Tensor:
        inputs = F.pad(words[:, :-1], (1, 0), value=model.start).T
        hidden, _ = model.recurrent(model.embedding(inputs))
        return hidden.transpose(0, 1)

    def plain_logits(self, model: LSTM, words: Tensor, mixed: bool) -> Tensor:
        """Logits of a frozen model."""
        with torch.no_grad(), precision(mixed):
            return model.output(self._hidden(model, words))


def language_model(alternatives: bool = True, **options) -> Case:
    """Cross-entropy training."""
    setting = Setting(**options)
    ways = {"ours": setting.step(LanguageModelTask)}
    if alternatives:
        ways |= setting.plain_steps(
            "plain loop",
            lambda logits, words, _: F.cross_entropy(logits.flatten(0, 1), words.flatten()),
        )
    return Case(ways, setting.work(steps=1), tokens=setting.tokens)


def discriminator(alternatives: bool = True, **options) -> Case:
    """Eq. (6) with q_0 from a frozen model."""
    setting = Setting(**options)
    q0 = setting.network(seed=1).eval()

    def plain(logits: Tensor, words: Tensor, mixed: bool) -> Tensor:
        probabilities = setting.plain_logits(q0, words, mixed).softmax(-1)
        d_q = -(probabilities * F.logsigmoid(logits)).sum(-1)
        log_not_r = F.logsigmoid(-logits).gather(-1, words.unsqueeze(-1)).squeeze(-1)
        return (d_q - log_not_r).mean()

    ways = {"ours": setting.step(DiscriminatorTask, q0=q0)}
    if alternatives:
        ways |= setting.plain_steps("plain autograd", plain)
    return Case(ways, setting.work(steps=1, forward=1), tokens=setting.tokens)


def frozen_at_every_step(setting: Setting, q0: LSTM, frozen: LSTM) -> dict:
    """Steps of eq. (12) that run both frozen models, by way."""

    def plain_log_q_of(logits: Tensor, words: Tensor) -> Tensor:
        rows = logits.float().flatten(0, 1)
        return -F.cross_entropy(rows, words.flatten(), reduction="none").view(words.shape)

    def loss_of(logits: Tensor, words: Tensor, mixed: bool) -> Tensor:
        log_q0 = plain_log_q_of(setting.plain_logits(q0, words, mixed), words)
        log_odds = log_odds_of(setting.plain_logits(frozen, words, mixed).float(), words)
        return sum(finetuning_loss(plain_log_q_of(logits, words), log_q0, log_odds)).mean()

    return setting.plain_steps("frozen models at every step", loss_of)


def finetuning(**options) -> Case:
    """Eq. (12): frozen scalars cached, against both frozen models at every step, and eq. (1)."""
    setting = Setting(**options)
    q0, frozen = setting.network(seed=1).eval(), setting.network(seed=2).eval()
    train, once = setting.split.train, "computing the scalars, once"
    ways = {
        "ours": setting.step(FinetuningTask, q0=q0, discriminator=frozen),
        **frozen_at_every_step(setting, q0, frozen),
        "cross-entropy step of ours": setting.step(LanguageModelTask),
        once: lambda: (
            over_batches(q0, train, log_q_of),
            over_batches(frozen, train, log_odds_of),
        ),
    }
    # The frozen numbers are read in float32 whatever the training's precision.
    others = {once: setting.work(forward=2, mixed=False)}
    return Case(ways, setting.work(steps=1), others, setting.tokens)


def _shape(profile: str) -> str:
    model = settings.load(profile).synthetic
    units, batch = model.model.hidden, model.language_model.batch_size
    return f"{batch} sentences, {units} units, 1000 words ({profile})"


BENCHMARKS = [
    Benchmark(
        f"{subject}, {precision_name(mixed)}",
        _shape(profile),
        build,
        {"profile": profile, "mixed": mixed},
    )
    for subject, build in (
        ("language-model step", language_model),
        ("discriminator step", discriminator),
        ("fine-tuning step", finetuning),
    )
    for profile in ("quick", "paper")
    for mixed in PRECISIONS
]
