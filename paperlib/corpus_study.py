"""The study of sections 4.1 and 4.2: one network on one corpus, from training to Tables 2 and 3.

Every step is a method that trains or finds its result.
"""

from pathlib import Path

from paperlib import corpora, paths, settings, stages
from paperlib.checkpoints import load_json, save_json
from paperlib.corpora.known import KNOWN
from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.evaluation import perplexity
from paperlib.stages import Trained
from paperlib.stream_tasks import on_device
from paperlib.text_study import BEST, OPTIONS, TextStudy


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
        super().__init__(own, name, self.corpus, key, seed)

    def options(self) -> list[str]:
        """The ways of fine-tuning that this profile runs."""
        return list(OPTIONS) if self.settings.all_options else [BEST]

    # Measures

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
        at = min(range(len(grid)), key=lambda k: grid[k]["perplexity"])
        best = search.grid()[at]
        whole = search.search_tokens is None or search.search_tokens >= len(self.corpus.valid)
        valid = grid[at]["perplexity"] if whole else dynamic_perplexity("valid", best)
        splits = {"valid": valid, "test": dynamic_perplexity("test", best)}
        save_json(folder / "result.json", splits | {"best": best.model_dump(), "grid": grid})


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
    for trained in (study.initial, *(study.finetuned(option) for option in study.options())):
        study.token_log_probs(trained)
    for trained in (study.initial, study.finetuned()):
        study.dynamic(trained)
    return {"profile": profile.name, "experiment": name, "trainings": trainings}
