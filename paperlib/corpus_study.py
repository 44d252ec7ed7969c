"""The study of sections 4.1 and 4.2: one network on one corpus, from training to Tables 2 and 3.

Every step is a method that trains or finds its result.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from paperlib import corpora, paths, settings, stages
from paperlib.checkpoints import load_arrays, load_json, save, save_json
from paperlib.corpora.known import KNOWN
from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.evaluation import perplexity
from paperlib.remembered import Remembered
from paperlib.stages import Trained
from paperlib.stream_text import on_device
from paperlib.text_study import BEST, OPTIONS, TextStudy

OWN = "own"
UNREGULARISED = "unregularised"
"""What :meth:`CorpusStudy.search` calls the experiment's own training, and a discriminator without
dropout and other regularisation."""

CONTROLS = {"cross_entropy": False, "cross_entropy_dropout": True}
"""What fine-tuning is held against, by name: cross-entropy alone, with dropout?"""

DYNAMIC_LOG_Q = "log_q.safetensors"
"""Lies beside the result of dynamic evaluation."""


class CorpusStudy(TextStudy):
    """One experiment of sections 4.1 and 4.2 for one seed."""

    kind = "corpus"

    def __init__(self, profile: settings.Profile, name: str, seed: int = 0):
        own = profile.corpora[name]
        corpus = own.corpus
        if corpus not in (*KNOWN, "embedded"):
            corpus = str(paths.in_project(corpus))
        corpus = corpora.load(corpus, embedded_instead=profile.embedded_instead)
        self.corpus = corpus.head(**own.first.model_dump())
        _check_length(self.corpus, own)
        key = {"corpus": self.corpus.checksums, "first": own.first.model_dump()}
        super().__init__(own, name, self.corpus, key, seed, once=Remembered())

    def options(self) -> list[str]:
        """The ways of fine-tuning that this profile runs."""
        return list(OPTIONS) if self.settings.all_options else [BEST]

    @property
    def has_control(self) -> bool:
        """Whether ``CONTROLS`` are run beside them, as the profile says."""
        return self.settings.control

    @cached_property
    def cross_entropy(self) -> Trained:
        """The control: of the rates that are tried for it, that of the best validation perplexity,
        so that no bad choice of ours speaks for the discriminator."""
        return _best(self._controls("cross_entropy"))

    @cached_property
    def cross_entropy_dropout(self) -> Trained:
        """The other control, at the best rate too: how far the network was from its end."""
        return _best(self._controls("cross_entropy_dropout"))

    def _controls(self, name: str) -> dict[str, Trained]:
        """One of ``CONTROLS`` at fine-tuning's rate, ``OWN``, and at those that are tried."""
        rates = {OWN: None}
        if self.settings.search:
            rates |= {rate_name(rate): rate for rate in self.settings.search.cross_entropy}
        with_dropout = CONTROLS[name]
        return {
            title: self.cross_entropy_at(rate, with_dropout=with_dropout)
            for title, rate in rates.items()
        }

    def models(self) -> dict[str, Trained]:
        """The initial model and all that fine-tuning makes of it, the controls last."""
        if not self.has_control:
            return super().models()
        return super().models() | {name: getattr(self, name) for name in CONTROLS}

    def search(self) -> dict[str, dict[str, Trained]]:
        """Discriminators, fine-tunings of the paper's option, and controls where the profile has
        them, by what was tried; ``OWN`` first.

        Empty where the profile tries nothing.
        """
        tried, own = self.settings.search, self.settings.discriminator
        if tried is None:
            return {}
        rates = {rate_name(rate): {"learning_rate": rate} for rate in tried.discriminator}
        others = rates | {UNREGULARISED: {"regularised": False}}
        found = {
            "discriminator": {OWN: self.discriminator}
            | {
                name: self.discriminator_by(own.model_copy(update=update), f"discriminator, {name}")
                for name, update in others.items()
            },
            "finetuning": {OWN: self.finetuned()}
            | {rate_name(rate): self.finetuned(BEST, rate) for rate in tried.finetuning},
        }
        if self.has_control:
            found |= {name: self._controls(name) for name in CONTROLS}
        return found

    def trainings(self) -> Iterator[tuple[str, Trained]]:
        """All trainings of the experiment by name, each trained when it is reached."""
        yield from super().trainings()
        if self.has_control:
            yield "finetuning_cross_entropy_dropout", self.cross_entropy_at(with_dropout=True)
        for kind, tried in self.search().items():
            for name, trained in tried.items():
                if name != OWN:
                    yield f"search_{kind}_{name.replace(' ', '_')}", trained

    # Measures

    def dynamic(self, trained: Trained) -> dict | None:
        """Perplexities under dynamic evaluation; None where the profile does not run it.

        Its parameters are searched on the validation text; the result has the search as ``grid``.
        """
        folder = self._dynamic_folder(trained)
        return folder and load_json(folder / "result.json")

    def dynamic_log_probs(self, trained: Trained) -> dict[str, np.ndarray] | None:
        """Log-probability of every validation and test token under dynamic evaluation with the best
        parameters, ``(N,)`` float32, nats.

        None where the profile does not run it, or where a result of an earlier version has none.
        """
        folder = self._dynamic_folder(trained)
        if folder is None or not (folder / DYNAMIC_LOG_Q).is_file():
            return None
        return load_arrays(folder / DYNAMIC_LOG_Q)

    def _dynamic_folder(self, trained: Trained) -> Path | None:
        search = self.settings.dynamic
        if search is None:
            return None
        key = {"model": trained.address, "search": search.model_dump(mode="json")}
        return stages.once(
            "dynamic_evaluation",
            self._data_key | key,
            lambda folder: self._search_dynamic(trained, search, folder),
        )

    def _search_dynamic(
        self, trained: Trained, search: settings.DynamicEvaluation, folder: Path
    ) -> None:
        train = on_device(
            corpora.streams(self.corpus.train[: search.statistics_tokens], search.streams),
            self.device,
        )
        rms = gradient_rms(trained.model, train, search.bptt, "gradient statistics")

        def log_q(split: str, update: settings.DynamicUpdate, first=None) -> torch.Tensor:
            tokens = self._tokens(split)[:first]
            title = f"dynamic evaluation, {split}"
            of = trained.model, tokens, self.corpus.eos, rms, update, title
            return dynamic_log_q(*of).cpu()

        searched = [log_q("valid", update, search.search_tokens) for update in search.grid()]
        grid = [
            update.model_dump() | {"perplexity": perplexity(values)}
            for update, values in zip(search.grid(), searched, strict=True)
        ]
        at = min(range(len(grid)), key=lambda k: grid[k]["perplexity"])
        best = search.grid()[at]
        whole = search.search_tokens is None or search.search_tokens >= len(self.corpus.valid)
        tokens = {"valid": searched[at] if whole else log_q("valid", best)}
        tokens["test"] = log_q("test", best)
        save(folder / DYNAMIC_LOG_Q, lambda file: save_file(tokens, file))
        splits = {split: perplexity(values) for split, values in tokens.items()}
        save_json(folder / "result.json", splits | {"best": best.model_dump(), "grid": grid})


def rate_name(rate: float) -> str:
    """What :meth:`CorpusStudy.search` calls a training at another learning rate."""
    return f"rate {rate:g}"


def _best(tried: dict[str, Trained]) -> Trained:
    return min(tried.values(), key=lambda trained: trained.progress.best)


def _check_length(corpus: corpora.Corpus, own: settings.Experiment) -> None:
    """Before anything is trained: whether the training text has two steps for every stream.

    Raises :class:`~paperlib.corpora.CorpusError` if not.
    """
    trainings = (own.language_model, own.second_run, own.discriminator, own.finetuning)
    needs = [(corpus.train, training.batch_size) for training in trainings if training]
    if own.dynamic:
        needs.append((corpus.train[: own.dynamic.statistics_tokens], own.dynamic.streams))
    try:
        for tokens, number in needs:
            corpora.streams(tokens, number)
    except corpora.CorpusError as error:
        raise corpora.CorpusError(
            f"{corpus.title}: the training text is too short: {error}"
        ) from None


def run_experiment(profile: settings.Profile, name: str) -> dict:
    """Train and measure all of one experiment; returns where in ``runs/`` each result lies."""
    study = CorpusStudy(profile, name)
    trainings = {title: trained.address for title, trained in study.trainings()}
    for trained in study.models().values():
        study.token_log_probs(trained)
    study.valid_log_odds()
    search = study.search()
    for trained in search.get("finetuning", {}).values():
        study.token_log_probs(trained)
    for trained in search.get("discriminator", {}).values():
        study.discriminator_losses(trained)
    for trained in (study.initial, study.finetuned()):
        study.dynamic(trained)
    return {"profile": profile.name, "experiment": name, "trainings": trainings}
