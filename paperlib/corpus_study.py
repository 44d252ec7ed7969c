"""The study of section 4: one network on one corpus, from training to Tables 2 and 3.

Every step is a method that trains or finds its result.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file

from paperlib import corpora, hardware, settings, stages
from paperlib.checkpoints import load_json, save_json, write_atomically
from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.evaluation import perplexity
from paperlib.models import AWDLSTM
from paperlib.stages import Trained
from paperlib.stream_tasks import (
    VALIDATION_STREAMS,
    DiscriminatorStreams,
    FinetuningStreams,
    LanguageModelStreams,
    on_device,
)
from paperlib.streams import over_tokens

OPTIONS = {
    "discriminator": (False, True),
    "dropout_discriminator": (True, True),
    "no_discriminator": (False, False),
    "dropout_no_discriminator": (True, False),
}
"""The rows of Table 2 by name: with dropout? with discriminator?"""

BEST = "discriminator"
"""The option that the paper takes to Table 3."""


class CorpusStudy:
    """One experiment of section 4 for one seed."""

    def __init__(self, profile: settings.Profile, name: str, seed: int = 0):
        self.settings = profile.corpora[name]
        self.name = name
        self.seed = seed
        self.device = hardware.device()
        corpus = corpora.load(self.settings.corpus, embedded_instead=profile.embedded_instead)
        self.corpus = corpus.head(**self.settings.first.model_dump())

    # Models

    @cached_property
    def first_run(self) -> Trained:
        """The language model after its first training: SGD, then averaged SGD."""
        training = self.settings.language_model
        return stages.train(
            "corpus_language_model",
            self._data_key,
            training,
            self._new_model(stream=0),
            lambda model: LanguageModelStreams(*self._task("language model", model, training)),
        )

    @cached_property
    def initial(self) -> Trained:
        """The initial model: after the second run, of averaged SGD, where the profile has one."""
        training = self.settings.second_run
        if training is None:
            return self.first_run
        return stages.train(
            "corpus_second_run",
            self._data_key | {"start": self.first_run.folder.name},
            training,
            self._copy(self.first_run),
            lambda model: LanguageModelStreams(*self._task("second run", model, training)),
        )

    @cached_property
    def discriminator(self) -> Trained:
        """The discriminator between the text and the initial model, trained from scratch."""
        training = self.settings.discriminator
        q0 = self.initial
        return stages.train(
            "corpus_discriminator",
            self._data_key | {"q0": q0.folder.name},
            training,
            self._new_model(stream=1),
            lambda model: DiscriminatorStreams(
                *self._task("discriminator", model, training), q0=q0.model
            ),
        )

    def finetuned(self, option: str = BEST) -> Trained:
        """The initial model fine-tuned in one of the ways of ``OPTIONS``.

        "Without dropout" is without the network's other regularisation too.
        """
        with_dropout, with_discriminator = OPTIONS[option]
        training = self.settings.finetuning.model_copy(update={"regularised": with_dropout})
        q0 = self.initial
        discriminator = self.discriminator if with_discriminator else None
        key = self._data_key | {"q0": q0.folder.name, "discriminator": None}
        if discriminator is not None:
            key["discriminator"] = discriminator.folder.name
        return stages.train(
            "corpus_finetuning",
            key,
            training,
            self._copy(q0),
            lambda model: FinetuningStreams(
                *self._task(f"fine-tuning ({option.replace('_', ' ')})", model, training),
                q0=q0.model,
                discriminator=discriminator and discriminator.model,
            ),
        )

    def options(self) -> list[str]:
        """The ways of fine-tuning that this profile runs."""
        return list(OPTIONS) if self.settings.all_options else [BEST]

    # Measures

    def perplexities(self, trained: Trained) -> dict[str, float]:
        """Perplexity on the validation and test text, every predicted token counted once."""
        return {split: perplexity(log_q) for split, log_q in self.token_log_probs(trained).items()}

    def token_log_probs(self, trained: Trained) -> dict[str, np.ndarray]:
        """Log-probability of every validation and test token, ``(N,)`` float32, nats."""

        def compute(folder: Path) -> None:
            values = {split: self.log_q(trained, split).cpu() for split in ("valid", "test")}
            write_atomically(folder / "log_q.safetensors", lambda file: save_file(values, file))

        folder = stages.once("corpus_log_q", self._data_key | {"model": trained.address}, compute)
        return load_file(folder / "log_q.safetensors")

    def dynamic(self, trained: Trained) -> dict | None:
        """Perplexities under dynamic evaluation; None where the profile does not run it.

        Its parameters are searched on the validation text; the result has the search as ``grid``.
        """
        search = self.settings.dynamic
        if search is None:
            return None
        key = {"model": trained.address, "search": search.model_dump(mode="json")}
        folder = stages.once(
            "dynamic_evaluation",
            self._data_key | key,
            lambda folder: self._search_dynamic(trained, search, folder),
        )
        return load_json(folder / "result.json")

    def _search_dynamic(
        self, trained: Trained, search: settings.DynamicEvaluation, folder: Path
    ) -> None:
        train = on_device(
            corpora.streams(self.corpus.train[: search.statistics_tokens], search.streams),
            self.device,
        )
        rms = gradient_rms(trained.model, train, search.bptt, "gradient statistics")

        def dynamic_perplexity(split: str, update: settings.DynamicUpdate, first=None) -> float:
            tokens = self._tokens(split)[:first]
            title = f"dynamic evaluation, {split}"
            log_q = dynamic_log_q(trained.model, tokens, self.corpus.eos, rms, update, title)
            return perplexity(log_q.cpu())

        grid = [
            update.model_dump()
            | {"perplexity": dynamic_perplexity("valid", update, search.search_tokens)}
            for update in search.grid()
        ]
        best = search.grid()[min(range(len(grid)), key=lambda k: grid[k]["perplexity"])]
        splits = {split: dynamic_perplexity(split, best) for split in ("valid", "test")}
        save_json(folder / "result.json", splits | {"best": best.model_dump(), "grid": grid})

    # Parts

    def trainings(self) -> Iterator[tuple[str, Trained]]:
        """All trainings of the experiment by name, each trained when it is reached."""
        yield "language_model", self.first_run
        if self.settings.second_run is not None:
            yield "second_run", self.initial
        yield "discriminator", self.discriminator
        for option in self.options():
            yield f"finetuning_{option}", self.finetuned(option)

    def log_q(self, trained: Trained, split: str) -> torch.Tensor:
        """Log-probability of every token of a split, ``(N,)`` on the device, nats."""
        return over_tokens(
            [trained.model],
            self._tokens(split),
            self.corpus.eos,
            trained.model.log_q_of,
            VALIDATION_STREAMS,
        )

    def _tokens(self, split: str) -> torch.Tensor:
        return on_device(getattr(self.corpus, split), self.device)

    def _task(self, title: str, model: AWDLSTM, training: settings.StreamTraining) -> tuple:
        return f"{title} ({self.name})", model, self.corpus, training, self.seed

    def _new_model(self, stream: int) -> AWDLSTM:
        generator = torch.Generator().manual_seed(2 * self.seed + stream)
        return AWDLSTM(self.corpus.n_words, self.settings.network, generator).to(self.device)

    def _copy(self, trained: Trained) -> AWDLSTM:
        model = self._new_model(stream=0)
        model.load_state_dict(trained.model.state_dict())
        return model

    @cached_property
    def _data_key(self) -> dict:
        return {
            "seed": self.seed,
            "network": self.settings.network.key(),
            "corpus": self.corpus.checksums,
            "first": self.settings.first.model_dump(),
        }


def run_experiment(profile: settings.Profile, name: str) -> dict:
    """Train and measure all of one experiment; returns where in ``runs/`` each result lies."""
    study = CorpusStudy(profile, name)
    trainings = {title: trained.address for title, trained in study.trainings()}
    for trained in (study.initial, *(study.finetuned(option) for option in study.options())):
        study.token_log_probs(trained)
    for trained in (study.initial, study.finetuned()):
        study.dynamic(trained)
    return {"profile": profile.name, "experiment": name, "trainings": trainings}
