"""The study of section 4.3: a large vocabulary and text that comes in parts.

Where the text is that of the synthetic language, the true distribution is known, and with it the
true perplexity and divergences.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from paperlib import corpora, distributed, paths, settings, stages, threads
from paperlib.checkpoints import save
from paperlib.divergences import kl
from paperlib.estimates import interval_of_mean
from paperlib.files import save_array
from paperlib.frequency_bins import change_by_bin
from paperlib.models.differentiated import block_sizes
from paperlib.shards.documents import TextError
from paperlib.shards.parts import Shards
from paperlib.shards.prepare import TextSettings, prepare
from paperlib.shards.texts import ShardedText, SyntheticText
from paperlib.stages import Trained
from paperlib.text_study import TextStudy
from paperlib.trigram import TrigramLanguage

PIECE = 50
"""Contexts whose distributions over the vocabulary are held at once."""


class LargeStudy(TextStudy):
    """Section 4.3 for one seed."""

    kind = "large"

    def __init__(self, profile: settings.Profile, seed: int = 0):
        own = profile.large
        if own is None:
            raise settings.SettingsError(
                f"profile {profile.name} has no [large], or the experiments that were chosen leave "
                "it out"
            )
        shards, self.title = _shards(own)
        if shards is not None:
            text = ShardedText(shards, seed, parts_at_once=own.parts_at_once)
            key = {"shards": shards.checksum, "valid": text.valid_tokens}
        else:
            language = TrigramLanguage(n_words=own.words - 1)
            sizes = {name: getattr(own, name) for name in ("part", "valid", "test", "length")}
            text = SyntheticText(language, seed, **sizes, parts_at_once=own.parts_at_once)
            key = {"words": own.words} | sizes
        try:
            block_sizes(text.n_words, own.network)
        except ValueError as error:
            raise TextError(f"the vocabulary of {self.title} is too small: {error}") from None
        super().__init__(own, "large", text, key | {"at_once": own.parts_at_once}, seed)

    @property
    def knows_p(self) -> bool:
        """Whether the true distribution is known."""
        return isinstance(self.text, SyntheticText)

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of the text's index, and with it of all parts; of the synthetic language, none:
        what it depends on is in the settings."""
        return {} if self.knows_p else {f"{self.title}, index": self.text.shards.checksum}

    @property
    def text_key(self) -> dict:
        """What the text depends on, as plain values."""
        return self._text_key

    @property
    def part_tokens(self) -> int:
        """Tokens of the first part."""
        return self.text.part_tokens(0)

    def tokens_seen(self, epochs: int) -> int:
        """Tokens of the parts of the first ``epochs`` epochs."""
        parts = range(epochs * self.text.parts_at_once)
        return sum(map(self.text.part_tokens, parts))

    @cached_property
    def test_log_p(self) -> np.ndarray:
        """True log-probability of every test token, ``(N,)``, nats."""

        def compute(folder: Path) -> None:
            log_p = self.text.log_p(self.text.test)
            save(folder / "log_p.npy", lambda path: save_array(path, log_p))

        folder = stages.once("large_log_p", self._text_key | {"seed": self.seed}, compute)
        return np.load(folder / "log_p.npy")

    def divergences(self, trained: Trained) -> dict[str, np.ndarray]:
        """KL(p‖q) and KL(q‖p) as ``forward`` and ``reverse``, ``(sentences, words)``, nats.

        In the first contexts of the test text, summed over the words, given that a word follows:
        where a sentence ends is certain, so that p is 0 for words there and for the end elsewhere,
        which would make the reverse divergence infinite.
        """
        length, language = self.text.length, self.text.language
        sentences = max(1, self.settings.contexts // length)
        words = self.text.test.reshape(-1, length + 1)[:sentences].astype(np.int64)
        # Each sentence by itself, after the end of one before it.
        before = np.pad(words[:, : length - 1], ((0, 0), (1, 0)))
        left2 = np.pad(before[:, :-1], ((0, 0), (1, 0)))
        found = {"forward": [], "reverse": []}
        few = max(1, PIECE // length)
        for start in range(0, sentences, few):
            rows = slice(start, start + few)
            log_q = self._log_q_of_words(trained, before[rows])
            p = language.next_word_probs(left2[rows], before[rows])
            log_p = torch.from_numpy(np.log(p)).to(log_q)
            found["forward"].append(kl(log_p, log_q))
            found["reverse"].append(kl(log_q, log_p))
        return {name: torch.cat(values).cpu().numpy() for name, values in found.items()}

    def _log_q_of_words(self, trained: Trained, before: np.ndarray) -> torch.Tensor:
        """``(sentences, length, V)`` float64: log q of each word, given that a word follows."""
        text = torch.from_numpy(before.T.copy()).to(self.device)
        with torch.no_grad():
            encoded, _ = trained.model.encode(text, trained.model.start(text.shape[1]))
            log_q = trained.model.log_q(encoded).transpose(0, 1)[..., 1:].double()
        return log_q.log_softmax(-1)

    def change_of_divergences(self) -> pd.DataFrame:
        """True divergences before and after fine-tuning, with 95 % intervals over sentences.

        No rows where p is not known.
        """
        if not self.knows_p:
            return pd.DataFrame(columns=["divergence", "before", "after", "change", "low", "high"])
        before, after = (self.divergences(one) for one in (self.initial, self.finetuned()))
        rows = []
        for name in before:
            change = (after[name] - before[name]).mean(axis=1)
            mean, low, high = interval_of_mean(change, self.settings.resamples, self.seed)
            row = {"divergence": name, "before": before[name].mean(), "after": after[name].mean()}
            rows.append(row | {"change": mean, "low": low, "high": high})
        return pd.DataFrame(rows)

    def who_gains(self) -> pd.DataFrame:
        """Change of log q on the test text by the rank of the word in the first training part.

        The token between sentences is left out, of the changes and of the ranks: it is no word.
        """
        before, after = (
            self.token_log_probs(trained)["test"].astype(np.float64)
            for trained in (self.initial, self.finetuned())
        )
        ids = self.text.test.astype(np.int64)
        ends = ids == self.text.eos
        sentence = np.cumsum(ends) - ends
        counts = np.bincount(self.text.train_part(0), minlength=self.text.n_words)
        counts[self.text.eos] = 0
        return change_by_bin(
            (after - before)[~ends],
            ids[~ends],
            sentence[~ends],
            counts,
            resamples=self.settings.resamples,
            seed=self.seed,
        )


def _shards(own: settings.LargeScale) -> tuple[Shards | None, str]:
    """The shards that the settings name, if any, and what they are of."""
    if own.shards is not None:
        address = own.shards if "://" in own.shards else paths.in_project(own.shards)
        return Shards(address), f"text of the shards {own.shards.rstrip('/').split('/')[-1]}"
    folder = corpora.find(own.folder) if own.folder else None
    if folder is None:
        return None, "the synthetic language"
    options = TextSettings(
        vocabulary=own.words, part_bytes=own.part_bytes, valid=own.held_out, test=own.held_out
    )
    # The others of this machine wait meanwhile.
    number = threads.allowed() * distributed.size_here()
    with distributed.first_goes_first():
        return prepare(folder, options, number), f"text of the folder {folder.name}"


def run_large(profile: settings.Profile) -> dict:
    """Train and measure section 4.3; returns where in ``runs/`` each result lies."""
    study = LargeStudy(profile)
    trainings = {title: trained.address for title, trained in study.trainings()}
    for trained in study.models().values():
        study.token_log_probs(trained)
    study.valid_log_odds()
    if study.knows_p:
        _ = study.test_log_p
    return {"profile": profile.name, "trainings": trainings}
