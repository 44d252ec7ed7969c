"""Who gains by fine-tuning: change of log q at frequent and at rare words (notebook 09, part 6).

Changes are in nats a token; intervals are 95 % by bootstrap over whole sentences.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from paperlib.beyond import BeyondStudy
from paperlib.corpora.text import EOS
from paperlib.corpus_study import CorpusStudy
from paperlib.estimates import Estimate
from paperlib.frequency_bins import change_by_bin, change_of_words, ranks
from paperlib.synthetic import MODELS

FREQUENT, RARE = 100, 1000
"""On running text, words up to this rank in the training text are frequent; beyond it, rare."""

DAMAGE = 0.01
"""Mean loss of log q (nats) up to which frequent words are not damaged significantly: 1 %."""


@dataclass(frozen=True)
class Changes:
    """What one fine-tuning changes at the test words; arrays ``(n,)``, ``counts`` ``(V,)``."""

    name: str
    change: np.ndarray
    words: np.ndarray
    sentences: np.ndarray
    counts: np.ndarray
    frequent: int
    """The last rank of a frequent word."""
    rare: int
    """Words beyond this rank are rare."""
    chosen: int | None = None
    """The perturbed word, which is neither."""
    ends: np.ndarray = field(default_factory=lambda: np.empty(0))
    """Of running text: what changes at the end of each sentence."""

    @classmethod
    def on_sentences(cls, study: BeyondStudy, of: str) -> "Changes":
        """Of the model ``of`` of section 3; frequent and rare words are the paper's."""
        ids, last = study.test, len(study.classes.frequent)
        before, after = (
            study.log_q(model, ids) for model in (study.start(of), study.finetuned(of).model)
        )
        sentences = np.repeat(np.arange(len(ids)), ids.shape[1])
        found = (after - before).ravel(), ids.ravel(), sentences, study.classes.counts
        return cls(f"{of} model", *found, last, last, study.chosen)

    @classmethod
    def on_text(cls, study: CorpusStudy) -> "Changes":
        """Of an experiment of section 4 on its test text, whose sentences end in ``<eos>``.

        That token stands apart, of the changes and of the ranks: it is no word, and section 4.3's
        (:meth:`paperlib.large_study.LargeStudy.who_gains`) are about words too.
        """
        corpus = study.corpus
        before, after = (
            study.token_log_probs(trained)["test"].astype(np.float64)
            for trained in (study.initial, study.finetuned())
        )
        ends = corpus.test == corpus.eos
        counts = np.bincount(corpus.train, minlength=corpus.n_words)
        counts[corpus.eos] = 0
        change = after - before
        of_word = (values[~ends] for values in (change, corpus.test, np.cumsum(ends) - ends))
        return cls(study.name, *of_word, counts, FREQUENT, RARE, ends=change[ends])

    def by_bin(self, resamples: int, seed: int) -> pd.DataFrame:
        """:func:`paperlib.frequency_bins.change_by_bin`, with the chosen word apart."""
        tables = []
        for is_chosen in (False, True) if self.chosen is not None else (False,):
            tokens = (self.words == self.chosen) == is_chosen
            table = change_by_bin(
                self.change[tokens],
                self.words[tokens],
                self.sentences[tokens],
                self.counts,
                resamples=resamples,
                seed=seed,
            )
            tables.append(table.assign(bin="chosen word") if is_chosen else table)
        return pd.concat(tables, ignore_index=True).assign(model=self.name)

    def of_groups(self, resamples: int, seed: int) -> pd.DataFrame:
        """The mean change at frequent and at rare words, and at ends of sentences, a row each."""
        rank, other = ranks(self.counts), np.arange(len(self.counts)) != self.chosen
        of_words = self.change, self.words, self.sentences
        groups = {
            "frequent": (*of_words, np.flatnonzero((rank <= self.frequent) & other)),
            "rare": (*of_words, np.flatnonzero((rank > self.rare) & other)),
        }
        if number := len(self.ends):
            of_ends = self.ends, np.zeros(number, int), np.arange(number)
            groups[EOS] = (*of_ends, np.zeros(1, int))
        return pd.DataFrame(
            {"model": self.name, "words": name}
            | change_of_words(*of, resamples=resamples, seed=seed)
            for name, of in groups.items()
        )


def all_changes(study: BeyondStudy, texts: list[CorpusStudy]) -> list[Changes]:
    """Of both models of Table 1, and of experiments of section 4."""
    return [Changes.on_sentences(study, of) for of in MODELS] + list(map(Changes.on_text, texts))


def measures(groups: pd.DataFrame) -> dict[str, Estimate]:
    """The rows of :meth:`Changes.of_groups` as measures ``model.change.words``."""
    return {
        f"{row['model'].replace(' ', '_')}.change.{row['words']}": Estimate(
            row["mean"], row["low"], row["high"], "bootstrap over test sentences"
        )
        for row in groups.to_dict("records")
    }
