"""Whole fine-tunings: frozen scalars computed once, beside both frozen models at every step.

Eq. (12) reads q_0 and r at the true next word alone, so the library computes two numbers a token
once and reads them in all of the profile's E epochs. That takes the time of 2/E forward passes an
epoch. A training step takes that of three (one forward, two for the gradients), and with two frozen
models five, which is 5/3 of it: where the same kernels do both, caching alone cannot make an epoch
twice as fast, and what is beyond 5/3 / (1 + 2/(3 E)) comes from kernels and precision. Beside
cross-entropy alone an epoch takes 1 + 2/(3 E).

The text is small, so that all epochs take seconds: the ratios do not depend on its size.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks import sentences, texts
from benchmarks.harness import PRECISIONS, SECTION_4, Benchmark, Case, precision, precision_name
from paperlib import settings
from paperlib.losses import finetuning_loss
from paperlib.models import AWDLSTM
from paperlib.stream_tasks import FinetuningStreams, LanguageModelStreams
from paperlib.tasks import FinetuningTask, LanguageModelTask
from paperlib.training import Trainer

BATCH = 256
"""Sentences of a batch, and of the text."""

PIECES = 4
"""Steps of an epoch of running text."""

CROSS_ENTROPY = "cross-entropy epochs of ours"


def of_sentences(profile: str, mixed: bool = False, words: int = 1000, batch: int = BATCH) -> Case:
    """Of the synthetic study's LSTM."""
    setting = sentences.Setting(profile, words, batch, mixed)
    epochs = settings.load(profile).synthetic.finetuning.max_epochs
    q0, frozen = setting.network(seed=1).eval(), setting.network(seed=2).eval()

    def epochs_of(kind: type, **options) -> Callable[[], float]:
        model = setting.network()
        return lambda: _run(setting.trainer(kind, model, **options), [setting.batch], epochs)

    def repeated(step: Callable[[], float]) -> Callable[[], float]:
        return lambda: [step() for _ in range(epochs)][-1]

    plain = sentences.frozen_at_every_step(setting, q0, frozen)
    ways = {
        "ours": epochs_of(FinetuningTask, q0=q0, discriminator=frozen),
        **{name: repeated(step) for name, step in plain.items()},
        CROSS_ENTROPY: epochs_of(LanguageModelTask),
    }
    others = {CROSS_ENTROPY: setting.work(steps=epochs)}
    work = setting.work(steps=epochs, forward=2)
    return Case(ways, work, others, tokens=epochs * setting.tokens)


def of_text(profile: str, mixed: bool = False, words: int = texts.WORDS) -> Case:
    """Of a mixture of softmaxes on running text."""
    setting = texts.Setting(profile, words, mixed=mixed, training="finetuning", pieces=PIECES)
    epochs = setting.training.max_epochs
    q0, frozen = setting.model(seed=1), setting.model(seed=2)

    def epochs_of(kind: type, **options) -> Callable[[], float]:
        model = setting.model()
        return lambda: _run(setting.trainer(kind, model, **options), setting.pieces, epochs)

    text = setting.trainer(LanguageModelStreams, q0).task.train
    name = "frozen models at every step"
    ways = {
        "ours": epochs_of(FinetuningStreams, q0=q0, discriminator=frozen),
        name: _recomputed(setting, text, q0, frozen, mixed),
    }
    if mixed:
        ways[f"{name}, float32"] = _recomputed(setting, text, q0, frozen, False)
    ways[CROSS_ENTROPY] = epochs_of(LanguageModelStreams)
    steps = epochs * PIECES
    work, others = setting.work(steps, forward=2), {CROSS_ENTROPY: setting.work(steps)}
    return Case(ways, work, others, tokens=epochs * setting.tokens)


def _run(trainer: Trainer, batches: list, epochs: int) -> float:
    """All epochs; returns the last loss."""
    for _ in range(epochs):
        for batch in batches:
            trainer.step(batch)
    return trainer.loss()


def _recomputed(
    setting: texts.Setting, text: Tensor, q0: AWDLSTM, frozen: AWDLSTM, mixed: bool
) -> Callable[[], float]:
    """All epochs in the published formulation, with three models' states carried along."""
    model = setting.model()
    optimizer = setting.usual_optimizer(model)

    def step(words: Tensor, target: Tensor, states: list) -> float:
        optimizer.zero_grad()
        with precision(mixed):
            with torch.no_grad():
                encoded, states[1] = q0.encode(words, states[1])
                log_q0 = texts.published_log_q_of(q0, encoded, target).float()
                encoded, states[2] = frozen.encode(words, states[2])
                log_odds = frozen.log_odds_of(encoded, target)
            encoded, states[0] = model.encode(words, states[0])
            log_q = texts.published_log_q_of(model, encoded, target).float()
            loss = sum(finetuning_loss(log_q, log_q0, log_odds)).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), setting.training.clip)
        optimizer.step()
        return loss.item()

    def epochs() -> float:
        for _ in range(setting.training.max_epochs):
            states = [one.start(text.shape[1]) for one in (model, q0, frozen)]
            for start, length in setting.pieces:
                until = start + length
                loss = step(text[start:until], text[start + 1 : until + 1], states)
        return loss

    return epochs


def _benchmark(profile: str, mixed: bool, build: Callable[..., Case], shape: str) -> Benchmark:
    subject = f"fine-tuning epochs, {precision_name(mixed)}"
    return Benchmark(subject, shape, build, {"profile": profile, "mixed": mixed}, repeats=3)


def _of_sentences_shape(profile: str) -> str:
    own = settings.load(profile).synthetic
    epochs, units = own.finetuning.max_epochs, own.model.hidden
    return f"{epochs} epochs of {BATCH} sentences, {units} units, 1000 words ({profile})"


def _of_text_shape(profile: str) -> str:
    own = settings.load(profile).corpora["mos_ptb"].finetuning
    tokens = PIECES * own.bptt * own.batch_size
    return f"{own.max_epochs} epochs of {tokens} tokens, mixture of softmaxes ({profile})"


BENCHMARKS = [
    _benchmark(profile, mixed, build, shape(profile))
    for build, shape, profile in (
        *((of_text, _of_text_shape, profile) for profile in SECTION_4 if profile != "overnight"),
        (of_sentences, _of_sentences_shape, "quick"),
        (of_sentences, _of_sentences_shape, "paper"),
    )
    for mixed in PRECISIONS
]
