"""Training steps of the synthetic study: language model, discriminator, fine-tuning.

The alternatives are written as the well-known example of a word language model writes them:
modules, a criterion on all logits, an optimiser step in a loop over the parameters.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Benchmark, Case, Work, precision
from paperlib import hardware, settings
from paperlib.evaluation import over_batches
from paperlib.losses import finetuning_loss
from paperlib.models import LSTM
from paperlib.models.readings import log_odds_of, log_q_of
from paperlib.tasks import DiscriminatorTask, FinetuningTask, LanguageModelTask, Split

LENGTH = 10


class Setting:
    """A network of the study, random sentences, and everything a step needs."""

    def __init__(self, profile: str, words: int = 1000, batch: int | None = None, mixed=False):
        synthetic = settings.load(profile).synthetic
        self.shape, training = synthetic.model, synthetic.language_model
        self.rate, self.clip, self.mixed = training.learning_rate, training.clip, mixed
        self.words, self.device = words, hardware.device()
        batch = batch or training.batch_size
        generator = torch.Generator().manual_seed(0)
        text = torch.randint(words, (batch, LENGTH), generator=generator).to(self.device)
        self.split = Split(text, text[:100])
        self.batch = torch.arange(batch, device=self.device)
        tokens, units = batch * LENGTH, self.shape.hidden
        recurrent = 2 * 4 * units * (self.shape.embedding + units * (2 * self.shape.layers - 1))
        output = 2 * units * words
        self.model_operations = 3 * tokens * (recurrent + output)

    def network(self, seed: int = 0) -> LSTM:
        """A new network."""
        generator = torch.Generator().manual_seed(seed)
        return LSTM(self.words, self.shape, generator).to(self.device)

    def step(self, kind: type, **options):
        """A step as the library does it: gradients, clipping, update."""
        model = self.network()
        task = kind("", model, self.split, seed=0, mixed=self.mixed, **options)
        optimizer = torch.optim.SGD(model.parameters(), lr=self.rate)

        def step() -> float:
            optimizer.zero_grad()
            loss = task.backward(self.batch)["loss"]
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            optimizer.step()
            return loss.item()

        return step

    def plain_steps(self, name: str, loss_of) -> dict:
        """Steps as people write them, by way; ``loss_of(logits, words, mixed)`` is the mean loss
        per token."""
        steps = {name: self._plain_step(loss_of, self.mixed)}
        if self.mixed:
            steps[f"{name}, float32"] = self._plain_step(loss_of, False)
        return steps

    def _plain_step(self, loss_of, mixed: bool):
        model = self.network()

        def step() -> float:
            model.zero_grad()
            words = self.split.train[self.batch]
            with precision(mixed):
                loss = loss_of(model.output(self._hidden(model, words)), words, mixed)
            (loss * LENGTH).backward()
            nn.utils.clip_grad_norm_(model.parameters(), self.clip)
            for parameter in model.parameters():
                parameter.data.add_(parameter.grad, alpha=-self.rate)
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
    return Case(ways, Work(setting.model_operations), setting.mixed)


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
    return Case(ways, Work(setting.model_operations * 4 / 3), setting.mixed)


def finetuning(**options) -> Case:
    """Eq. (12): frozen scalars cached, against both frozen models at every step, and eq. (1)."""
    setting = Setting(**options)
    q0, frozen = setting.network(seed=1).eval(), setting.network(seed=2).eval()

    def recomputed(logits: Tensor, words: Tensor, mixed: bool) -> Tensor:
        log_q0 = log_q_of(setting.plain_logits(q0, words, mixed).float(), words)
        log_odds = log_odds_of(setting.plain_logits(frozen, words, mixed).float(), words)
        return sum(finetuning_loss(log_q_of(logits.float(), words), log_q0, log_odds)).mean()

    train = setting.split.train
    ways = {
        "ours": setting.step(FinetuningTask, q0=q0, discriminator=frozen),
        **setting.plain_steps("frozen models at every step", recomputed),
        "cross-entropy step of ours": setting.step(LanguageModelTask),
        "computing the scalars, once": lambda: (
            over_batches(q0, train, log_q_of),
            over_batches(frozen, train, log_odds_of),
        ),
    }
    return Case(ways, Work(setting.model_operations), setting.mixed)


def _shape(profile: str) -> str:
    model = settings.load(profile).synthetic
    units, batch = model.model.hidden, model.language_model.batch_size
    return f"{batch} sentences, {units} units, 1000 words ({profile})"


BENCHMARKS = [
    Benchmark(
        f"{subject}, {'mixed precision' if mixed else 'float32'}",
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
    for mixed in ((False, True) if hardware.precision("auto") == "mixed" else (False,))
]
