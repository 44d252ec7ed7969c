"""Running text: training step, evaluation and dynamic evaluation of a mixture of softmaxes.

The alternatives compute all words' probabilities, as the published code does: softmax of every
expert, weighted sum, logarithm; they evaluate one stream of text, and update parameter after
parameter. The text is random words; time does not depend on what they say.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import (
    PRECISIONS,
    SECTION_4,
    Benchmark,
    Case,
    Work,
    parameters,
    precision,
    precision_name,
    step_bytes,
)
from paperlib import hardware, settings
from paperlib.corpora import InOnePart
from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.evaluation import perplexity
from paperlib.models import AWDLSTM
from paperlib.stream_tasks import LanguageModelStreams
from paperlib.streams import PIECE, VALIDATION_STREAMS, Piece, over_tokens
from paperlib.training import ADAM_BETAS, Trainer

WORDS = 10_000
LEARNING_RATE = 1e-3
"""Low, so that no number of steps on random words makes the loss infinite."""


@dataclass(frozen=True, eq=False)
class RandomText(InOnePart):
    """A :class:`paperlib.stream_text.Text`."""

    train: np.ndarray
    valid: np.ndarray
    n_words: int
    eos: int = 0


class Setting:
    """A network of a profile, random text, and everything a step needs.

    ``training`` names the settings to train by. An epoch is ``pieces`` pieces of their length.
    """

    def __init__(
        self,
        profile: str,
        words: int = WORDS,
        batch: int | None = None,
        experts: int | None = None,
        mixed: bool = False,
        training: str = "language_model",
        pieces: int = 1,
    ):
        experiment = settings.load(profile).corpora["mos_ptb"]
        self.network, own = experiment.network, getattr(experiment, training)
        if experts is not None:
            inner = self.network.experts[:-1]
            self.network = self.network.model_copy(update={"experts": (*inner, experts)})
        self.training = own.model_copy(
            update={
                "learning_rate": LEARNING_RATE,
                "batch_size": batch or own.batch_size,
                "precision": "mixed" if mixed else "float32",
            }
        )
        self.words, self.device, self.mixed = words, hardware.device(), mixed
        bptt, streams = self.training.bptt, self.training.batch_size
        self.pieces = [Piece(number * bptt, bptt) for number in range(pieces)]
        self.tokens = pieces * bptt * streams
        self.text = RandomText(
            self.draw(self.tokens + streams).numpy(), self.draw(100).numpy(), self.words
        )

    def draw(self, *shape: int) -> Tensor:
        """Random words."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(self.words, shape, generator=generator)

    def model(self, seed: int = 0) -> AWDLSTM:
        """A new network."""
        generator = torch.Generator().manual_seed(seed)
        return AWDLSTM(self.words, self.network, generator).to(self.device)

    def trainer(self, kind: type, model: AWDLSTM, **options) -> Trainer:
        """As the library trains; no checkpoint is written."""
        task = kind("", model, self.text, self.training, seed=0, **options)
        return Trainer(task, self.training, None)

    def usual_optimizer(self, model: AWDLSTM) -> torch.optim.Optimizer:
        """With the arithmetic of the library's, as people write it."""
        kind, options = torch.optim.SGD, {}
        if self.training.optimizer == "adam":
            kind, options = torch.optim.Adam, {"betas": ADAM_BETAS}
        return kind(
            model.parameters(), LEARNING_RATE, weight_decay=self.training.weight_decay, **options
        )

    def operations(self, tokens: int) -> float:
        """Of the products of a forward pass; gradients take twice as many."""
        sizes = (self.network.embedding, *self.network.hidden)
        recurrent = sum(4 * units * (inputs + units) for inputs, units in itertools.pairwise(sizes))
        experts = sum(self.network.experts)
        latents = experts * self.network.embedding * self.network.hidden[-1]
        output = experts * self.network.embedding * self.words
        return 2 * tokens * (recurrent + latents + output)

    def work(self, steps: int = 0, forward: int = 0) -> Work:
        """Of training steps, one a piece, and of forward passes over all pieces beside."""
        model = self.model()
        of_steps = 3 * steps * self.operations(self.tokens) / len(self.pieces)
        return Work(
            of_steps + forward * self.operations(self.tokens),
            steps * step_bytes(model, self.training.optimizer) + forward * 4 * parameters(model),
            self.mixed,
        )


def published_log_q_of(model: AWDLSTM, encoded, target: Tensor) -> Tensor:
    """As the published code computes it."""
    latents, log_pi = encoded.head
    softmax = F.linear(latents, model.embedding, model.head.bias).softmax(-1)
    q = (softmax * log_pi.exp().unsqueeze(-1)).sum(2)
    return q.add(1e-8).log().gather(-1, target.unsqueeze(-1)).squeeze(-1)


def training_step(alternatives: bool = True, **options) -> Case:
    """Cross-entropy with dropout: encode, head, gradients, clipping, update."""
    setting = Setting(**options)
    trainer = setting.trainer(LanguageModelStreams, setting.model())
    text, [piece] = trainer.task.train, setting.pieces

    def ours() -> float:
        trainer.step(piece)
        return trainer.loss()

    def published(mixed: bool) -> Callable[[], float]:
        model = setting.model()
        optimizer = setting.usual_optimizer(model)
        dropout = None
        if setting.training.regularised:
            dropout = torch.Generator(setting.device).manual_seed(0)

        def step() -> float:
            optimizer.zero_grad()
            with precision(mixed):
                encoded, _ = model.encode(text[:-1], model.start(text.shape[1]), dropout)
                loss = -published_log_q_of(model, encoded, text[1:]).mean()
            whole = loss
            if setting.training.regularised:
                whole = whole + model.regularisation(encoded)
            whole.backward()
            nn.utils.clip_grad_norm_(model.parameters(), setting.training.clip)
            optimizer.step()
            return loss.item()

        return step

    ways: dict[str, Callable[[], object]] = {"ours": ours}
    if alternatives:
        ways["published formulation"] = published(setting.mixed)
    if alternatives and setting.mixed:
        ways["published formulation, float32"] = published(False)
    return Case(ways, setting.work(steps=1), tokens=setting.tokens)


def evaluation(profile: str = "quick", tokens: int = 10_000, words: int = WORDS) -> Case:
    """Perplexity of a text, every token once."""
    setting = Setting(profile, words)
    model, text = setting.model().eval(), setting.draw(tokens).to(setting.device)

    def ours() -> float:
        with torch.no_grad():
            return perplexity(over_tokens([model], text, 0, model.log_q_of, VALIDATION_STREAMS))

    @torch.no_grad()
    def published() -> float:
        history, total, state = F.pad(text[:-1], (1, 0)), 0.0, model.start(1)
        for start in range(0, len(text), PIECE):
            encoded, state = model.encode(history[start : start + PIECE, None], state)
            target = text[start : start + PIECE, None]
            total += published_log_q_of(model, encoded, target).sum().item()
        return total / len(text)

    ways = {"ours": ours, "published loop, one stream": published}
    work = Work(setting.operations(tokens), 4 * parameters(model))
    return Case(ways, work, tokens=tokens)


def dynamic_evaluation(
    profile: str = "quick",
    tokens: int = 500,
    words: int = WORDS,
    update: settings.DynamicUpdate | None = None,
) -> Case:
    """Dynamic evaluation of a text in pieces of five words."""
    setting = Setting(profile, words)
    model, update = setting.model(), update or settings.DynamicUpdate()
    text, of_statistics = (
        setting.draw(*shape).to(setting.device) for shape in ((tokens,), (20, 10))
    )
    statistics = gradient_rms(model, of_statistics, update.bptt, "statistics")

    def ours() -> Tensor:
        return dynamic_log_q(model, text, 0, statistics, update, "ours")

    def published() -> float:
        changing = copy.deepcopy(model)
        trained = [parameter.data.clone() for parameter in changing.parameters()]
        mean = sum(value.mean() for value in statistics) / len(statistics)
        history, total, state = F.pad(text[:-1], (1, 0)), 0.0, changing.start(1)
        for start in range(0, tokens, update.bptt):
            changing.zero_grad()
            encoded, state = changing.encode(history[start : start + update.bptt, None], state)
            target = text[start : start + update.bptt, None]
            log_q = published_log_q_of(changing, encoded, target)
            (-log_q.mean()).backward()
            total += log_q.sum().item()
            for parameter, start_value, rms in zip(
                changing.parameters(), trained, statistics, strict=True
            ):
                decay = (update.decay * rms / mean).clamp(max=1)
                step = update.learning_rate * parameter.grad / (rms + update.epsilon)
                parameter.data = parameter.data + decay * (start_value - parameter.data) - step
        return total

    # Every piece reads the weights and writes gradients; every update reads both, trained weights,
    # decay and scale, and writes the weights.
    moved = 4 * 8 * parameters(model) * -(-tokens // update.bptt)
    ways = {"ours": ours, "published loop": published}
    return Case(ways, Work(3 * setting.operations(tokens), moved), tokens=tokens)


def shape(profile: str) -> str:
    """Of a training step, for people."""
    own = settings.load(profile).corpora["mos_ptb"]
    tokens = own.language_model.bptt * own.language_model.batch_size
    experts, hidden = sum(own.network.experts), "-".join(map(str, own.network.hidden))
    return f"{tokens} tokens, {experts} experts, units {hidden} ({profile})"


BENCHMARKS = [
    *(
        Benchmark(
            f"mixture training step, {precision_name(mixed)}",
            shape(profile),
            training_step,
            {"profile": profile, "mixed": mixed},
        )
        for profile in SECTION_4
        for mixed in PRECISIONS
    ),
    *(
        Benchmark(subject, f"{tokens} tokens ({profile})", build, {"profile": profile}, 3)
        for subject, tokens, build in (
            ("evaluation", "10 000", evaluation),
            ("dynamic evaluation", "500", dynamic_evaluation),
        )
        for profile in SECTION_4
    ),
]
