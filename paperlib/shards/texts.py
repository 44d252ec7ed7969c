"""Text that comes in parts, an epoch being one or some of them (section 4.3): from shards, or
without end from the synthetic language.

Both are what :mod:`paperlib.stream_tasks` trains on. The same seed gives the same parts in the same
order, whichever of them are asked for.
"""

from functools import cached_property

import numpy as np

from paperlib.shards.documents import SPLITS, TextError
from paperlib.shards.parts import Shards
from paperlib.trigram import TrigramLanguage


class ShardedText:
    """Parts of shards, each pass over them in another order.

    The validation text is read after every epoch, so no more of it is taken, from its beginning,
    than the training parts of an epoch have tokens on average.

    Raises :class:`~paperlib.shards.documents.TextError` where a split has no text.
    """

    eos = 0

    def __init__(self, shards: Shards, seed: int, *, parts_at_once: int = 1):
        self.shards, self.seed, self.parts_at_once = shards, seed, parts_at_once
        self.n_words = len(shards.words())
        self._parts = shards.parts("train")
        self._orders: dict[int, np.ndarray] = {}
        for split in SPLITS:
            if not shards.tokens(split):
                raise TextError(
                    f"the {split} split is empty: documents end at empty lines, and there are too "
                    "few for a share this small; add text or raise the share"
                )

    def part_of(self, number: int) -> int:
        """Which part comes as the one of this number; they are counted on from pass to pass."""
        passed, at = divmod(number, len(self._parts))
        if passed not in self._orders:
            drawn = np.random.default_rng([self.seed, passed]).permutation(len(self._parts))
            self._orders = {passed: drawn}
        return int(self._orders[passed][at])

    def part_tokens(self, number: int) -> int:
        """N of :meth:`train_part`, without fetching it."""
        return self._parts[self.part_of(number)].tokens

    def train_part(self, number: int) -> np.ndarray:
        """``(N,)`` ids of a part, on the disk."""
        return self._parts[self.part_of(number)].ids()

    @property
    def valid_tokens(self) -> int:
        """How many tokens of the validation text are taken."""
        of_epoch = self.parts_at_once * self.shards.tokens("train") // len(self._parts)
        return min(of_epoch, self.shards.tokens("valid"))

    @cached_property
    def valid(self) -> np.ndarray:
        """``(N,)`` ids of the validation text."""
        return self._first("valid", self.valid_tokens)

    @cached_property
    def test(self) -> np.ndarray:
        """``(N,)`` ids of the test text."""
        return self._first("test", self.shards.tokens("test"))

    def _first(self, split: str, tokens: int) -> np.ndarray:
        parts = []
        for part in self.shards.parts(split):
            if tokens > 0:
                parts.append(part.ids()[:tokens])
                tokens -= part.tokens
        return np.concatenate(parts)


class SyntheticText:
    """Endless sentences of the synthetic language, whose true probabilities are known.

    Word w has the id w, and 0 ends every sentence: ``V + 1`` ids.
    """

    eos = 0

    def __init__(
        self,
        language: TrigramLanguage,
        seed: int,
        *,
        part: int,
        valid: int,
        test: int,
        length: int = 10,
        parts_at_once: int = 1,
    ):
        """``part``, ``valid`` and ``test`` are numbers of sentences of ``length`` words."""
        self.language, self.seed, self.length = language, seed, length
        self.n_words = language.n_words + 1
        self.parts_at_once = parts_at_once
        self._sizes = {"train": part, "valid": valid, "test": test}

    def part_of(self, number: int) -> int:
        """Which part comes as the one of this number: itself."""
        return number

    def part_tokens(self, number: int) -> int:
        """N of :meth:`train_part`."""
        return self._sizes["train"] * (self.length + 1)

    def train_part(self, number: int) -> np.ndarray:
        """``(N,)`` ids of a part: sentences that no other part has a hand in."""
        return self._sentences("train", (self.seed, 0, number))

    @cached_property
    def valid(self) -> np.ndarray:
        """``(N,)`` ids of the validation text."""
        return self._sentences("valid", (self.seed, 1))

    @cached_property
    def test(self) -> np.ndarray:
        """``(N,)`` ids of the test text."""
        return self._sentences("test", (self.seed, 2))

    def log_p(self, ids: np.ndarray) -> np.ndarray:
        """True log-probability of each id of whole sentences ``(N,)``, nats; 0 for their ends."""
        words = ids.reshape(-1, self.length + 1)[:, :-1].astype(np.int64)
        return np.pad(self.language.log_prob(words), ((0, 0), (0, 1))).ravel()

    def _sentences(self, split: str, seed: tuple[int, ...]) -> np.ndarray:
        words = self.language.sample(self._sizes[split], self.length, seed=seed)
        return np.pad(words, ((0, 0), (0, 1)), constant_values=self.eos).astype(np.uint32).ravel()
