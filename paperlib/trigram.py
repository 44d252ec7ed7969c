"""The synthetic language of section 3 and appendix A: exact, seeded, without a table of trigrams.

Appendix A makes the probability of a trigram (i, j, k) proportional to α(j) · β(i, j) · β(k, j),

    α(j) = (1/50) · log(j + 1) / log 51 for j ≤ 50, else 1/j
    β(i, j) = (i · (|i − j + ξ| + 1))^−γ,  ξ uniform on {0, …, 5}, independent for each triple

and leaves open which word of the trigram is predicted, how a sentence starts, and whether β(i, j)
and β(k, j) share one ξ. The defaults here are the reading that reproduces the published statistics
(notebook 01 compares readings):

- a trigram is in sentence order and its last word is predicted, so α(j) cancels:
  p(k | i, j) ∝ β(i, j) · β(k, j);
- the start token is a left context with index s = 3: the first word comes from
  p(j | s) ∝ α(j) Σ_k β(s, j) · β(k, j), the second from p(k | s, j);
- β(i, j) and β(k, j) of a triple have a ξ each.

Nothing of size V³ is stored: the ξ of (i, j, k) is a hash of the seed and the three numbers. Words
are numbered 1…V as in the appendix, and 0 stands for the start token.
"""

from functools import cached_property
from typing import Literal

import numpy as np

from paperlib.arguments import generator, integers, require_whole
from paperlib.kept import kept
from paperlib.proposals import InverseCdf, Staircase
from paperlib.threads import in_blocks

XI_VALUES = 6
"""ξ is one of 0, …, 5."""

_BITS = 21  # of an index, so that three of them fit into one 64-bit number
_LARGEST = (1 << _BITS) - 1
_SENTENCES = 4096  # that share a random stream: part of what a seed means, so it is no setting
_WEIGHTS = 1 << 15  # computed at once, so few that they stay in the processor's cache
_TABLE = 1 << 20  # entries of words × words that proposals are tabulated for, and no more
_CONTEXTS = 512  # whose weights one thread computes before it looks for more


class TrigramLanguage:
    """Sentences from the trigram distribution of appendix A, and their exact probabilities.

    Parameters
    ----------
    seed
        Decides all ξ: whatever ``numpy.random.default_rng`` takes, such as an int.
    n_words
        V, the number of words without the start token.
    gamma
        γ, the exponent of β.
    start
        Index s of the start token as a left context, or ``"joint"``: the first two words follow
        the joint distribution's own marginals (which takes V³ steps, once).
    shared_xi
        Whether β(i, j) and β(k, j) of a triple have the same ξ.
    predicted
        ``"last"``: a sentence has the order i, j, k, and k is predicted. ``"middle"``: it has the
        order i, k, j, and j is predicted: p(j | i, k) ∝ α(j) · β(i, j) · β(k, j), which samples
        some ten times slower.

    Raises ``ValueError``, here and in the methods, for an argument out of range.
    """

    def __init__(
        self,
        seed=0,
        n_words: int = 1000,
        gamma: float = 0.75,
        *,
        start: int | Literal["joint"] = 3,
        shared_xi: bool = False,
        predicted: Literal["last", "middle"] = "last",
    ):
        require_whole("n_words", n_words, 1, _LARGEST)
        if not 0 < gamma < np.inf:
            raise ValueError(f"gamma must be a positive number, not {gamma}")
        if start != "joint":
            require_whole('start, if not "joint",', start, 0, _LARGEST)
        if predicted not in ("last", "middle"):
            raise ValueError(f'predicted must be "last" or "middle", not {predicted!r}')
        self.n_words = n_words
        self.gamma = gamma
        self.start = start
        self.shared_xi = shared_xi
        self.predicted = predicted
        self._key = generator(seed).integers(1 << 64, dtype=np.uint64)

        self._vocabulary = words = np.arange(1, n_words + 1)
        alpha = np.where(words <= 50, np.log(words + 1) / np.log(51) / 50, 1 / words)
        rank = words**-gamma
        # What a trigram's weight takes from one word alone, by the word's place in the sentence.
        self._of_left2 = rank
        self._of_left1, self._of_word = (alpha, rank) if predicted == "last" else (rank, alpha)

        # near[d] is (|d| + 1)^−γ, nearest[d] its maximum over d, …, d + 5; d < 0 from the end.
        self._start_index = 0 if start == "joint" else start
        largest = max(n_words, self._start_index)
        near = (np.abs(np.arange(-largest, largest + XI_VALUES)) + 1.0) ** -gamma
        nearest = np.lib.stride_tricks.sliding_window_view(near, XI_VALUES).max(axis=1)
        self._near, self._nearest = np.roll(near, -largest), np.roll(nearest, -largest)

    def xi(self, i, j, k) -> tuple[np.ndarray, np.ndarray]:
        """The ξ of β(i, j) and the ξ of β(k, j) in the triple (i, j, k) of appendix A.

        Arguments are int arrays that broadcast, in the appendix's roles whatever the order in a
        sentence; i may also be the start index. Both results are int64, 0…5.
        """
        named = {"i": i, "j": j, "k": k}
        triple = np.broadcast_arrays(*(integers(*item, 0, _LARGEST) for item in named.items()))
        buffers = np.empty((2, triple[0].size), dtype=np.int64)
        both = self._xi(*(index.reshape(-1) for index in triple), buffers)
        return tuple(values.reshape(triple[0].shape) for values in both)

    def next_word_probs(self, left2, left1) -> np.ndarray:
        """p(w | left2, left1) for every word w.

        Parameters
        ----------
        left2, left1
            Int arrays that broadcast to ``(...)``: the last word but one and the last word, in the
            order of the sentence. 0 is the start token, so ``(0, 0)`` gives the first word's
            distribution and ``(0, w)`` the second's.

        Returns
        -------
        ``(..., V)`` float64; word w is entry w − 1, and the last axis sums to 1.
        """
        left2, left1 = np.broadcast_arrays(
            integers("left2", left2, 0, self.n_words), integers("left1", left1, 0, self.n_words)
        )
        if np.any(bad := (left1 == 0) & (left2 != 0)):
            raise ValueError(f"left1 is the start token 0, but left2 is word {left2[bad][0]}")
        shape, left2, left1 = left1.shape, left2.reshape(-1), left1.reshape(-1)
        probs = np.empty((left1.size, self.n_words))
        position = 2 - (left2 == 0).astype(int) - (left1 == 0)
        for start, table in enumerate(self._start_tables):
            rows = position == start
            probs[rows] = table[left1[rows] - 1 if start else 0]
        others = np.flatnonzero(position >= len(self._start_tables))
        left2 = np.where(left2 == 0, self._start_index, left2)

        def fill(block: slice) -> None:
            rows = others[block]
            for part, weights in self._weights_of_all(left2[rows], left1[rows]):
                probs[rows[part]] = weights / weights.sum(axis=1, keepdims=True)

        in_blocks(fill, others.size, _CONTEXTS)
        return probs.reshape(*shape, self.n_words)

    def log_prob(self, sentences) -> np.ndarray:
        """Log-probability of each word given the words before it, nats.

        ``sentences`` is ``(N, T)``, int, words 1…V; the result is ``(N, T)``, float64.
        """
        words = integers("sentences", sentences, 1, self.n_words)
        if words.ndim != 2:
            raise ValueError(f"sentences must have 2 axes (N, T), not {words.ndim}")
        log_probs = np.empty(words.shape)
        for position, table in enumerate(self._start_tables[: words.shape[1]]):
            row = words[:, 0] - 1 if position else 0
            log_probs[:, position] = np.log(table[row, words[:, position] - 1])
        history = self._history(words)
        left2, left1, word = history[:, :-2], history[:, 1:-1], history[:, 2:]
        # Contexts repeat, and only their normalisers need a sum over the vocabulary.
        contexts, which = np.unique((left2 << _BITS) | left1, return_inverse=True)
        norms = self._norms(contexts >> _BITS, contexts & _LARGEST)
        weights = self._weights(left2, left1, word)
        log_probs[:, len(self._start_tables) :] = np.log(weights) - np.log(norms)[which]
        return log_probs

    def sample(self, n_sentences: int, length: int = 10, *, seed) -> np.ndarray:
        """Draw sentences by rejection: only proposed trigrams need their ξ.

        The same ``seed`` (whatever ``numpy.random.default_rng`` takes) gives the same sentences,
        and fewer or shorter sentences are the beginning of more or longer ones.

        Returns ``(n_sentences, length)``, int64, words 1…V. Raises ``ValueError`` where a reading
        other than the default would need a table of words × words that is too large.
        """
        require_whole("n_sentences", n_sentences, 0)
        require_whole("length", length, 1)
        sentences = np.empty((n_sentences, length), dtype=np.int64)
        streams = generator(seed).spawn(-(-n_sentences // _SENTENCES))

        def fill(rows: slice) -> None:
            block = self._sample_block(streams[rows.start // _SENTENCES], length)
            sentences[rows] = block[: rows.stop - rows.start]

        # Built before threads share them:
        large = self._is_large
        _ = (self._stairs, self._firsts) if large else (self._start_samplers, self._envelope)
        in_blocks(fill, n_sentences, _SENTENCES)
        return sentences

    # Weights of trigrams; from here on left2 may be the start index, as in the appendix

    def _xi(self, i, j, k, buffers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both ξ of each triple, in ``buffers[:2]`` (int64, of the broadcast shape).

        They are the two halves of one output of the SplitMix64 generator (Steele, Lea & Flood,
        2014): the triple is its number, and the generator starts at the language's key.
        """
        np.add(i << 2 * _BITS, j << _BITS, out=buffers[0])
        buffers[0] += k
        bits, high = buffers[:2].view(np.uint64)
        bits *= 0x9E3779B97F4A7C15
        bits += self._key
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            bits ^= np.right_shift(bits, shift, out=high)
            bits *= factor
        np.right_shift(bits, 32, out=high)
        bits &= 0xFFFFFFFF
        for half in (bits, high):
            half *= XI_VALUES
            half >>= 32
        if self.shared_xi:
            bits[...] = high
        return buffers[1], buffers[0]

    def _roles(self, left1: np.ndarray, word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """j and k of the appendix; left2 is always i."""
        return (left1, word) if self.predicted == "last" else (word, left1)

    def _nearness(self, left2, left1, word, buffers: np.ndarray | None = None) -> np.ndarray:
        """The part of β(i, j) · β(k, j) that a ξ is in; arguments broadcast.

        ``buffers`` are three int64 arrays to compute in, by default new ones like ``word``.
        """
        if buffers is None:
            buffers = np.empty((3, *word.shape), dtype=np.int64)
        j, k = self._roles(left1, word)
        to_i, to_k = self._xi(left2, j, k, buffers)
        to_i += left2
        to_k += k
        to_i -= j
        to_k -= j
        nearness = self._near.take(to_i, out=buffers[2].view(np.float64), mode="wrap")
        nearness *= self._near.take(to_k, out=to_i.view(np.float64), mode="wrap")
        return nearness

    def _weights(self, left2, left1, word, buffers: np.ndarray | None = None) -> np.ndarray:
        """p(word | left2, left1) up to a factor of the context; arguments broadcast."""
        weights = self._nearness(left2, left1, word, buffers)
        weights *= self._of_word[word - 1]
        return weights

    def _weights_of_all(self, left2: np.ndarray, left1: np.ndarray):
        """Weights of all words, ``(B, V)``, for a few of the ``(C,)`` contexts at a time.

        Yields the slice of the contexts and their weights, which the next ones overwrite.
        """
        # New arrays for each step would take the system several times as long as the arithmetic.
        few = max(1, _WEIGHTS // self.n_words)
        buffers = np.empty((3, min(few, left1.size), self.n_words), dtype=np.int64)
        for start in range(0, left1.size, few):
            rows = slice(start, min(start + few, left1.size))
            context = left2[rows, None], left1[rows, None]
            yield rows, self._weights(*context, self._vocabulary, buffers[:, : rows.stop - start])

    def _norms(self, left2: np.ndarray, left1: np.ndarray) -> np.ndarray:
        """Sum of the weights over the vocabulary, ``(C,)`` for ``(C,)`` contexts."""
        norms = np.empty(left1.size)

        def fill(rows: slice) -> None:
            for part, weights in self._weights_of_all(left2[rows], left1[rows]):
                weights.sum(axis=1, out=norms[rows][part])

        in_blocks(fill, left1.size, _CONTEXTS)
        return norms

    # The start of a sentence

    def _history(self, words: np.ndarray) -> np.ndarray:
        """``words`` with the start index before them, where that is a context of the trigrams."""
        if self.start == "joint":
            return words
        return np.pad(words, ((0, 0), (1, 0)), constant_values=self.start)

    @cached_property
    def _start_tables(self) -> list[np.ndarray]:
        """Distributions of the words that the trigram rule does not give.

        ``(1, V)`` for the first word and, with the joint distribution's own marginals, ``(V, V)``
        for the second given the first.
        """
        words, n_words = self._vocabulary, self.n_words
        if self.start != "joint":
            weights = self._of_left1 * self._norms_after_start()
            return [weights[None] / weights.sum()]
        norms = self._norms(np.repeat(words, n_words), np.tile(words, n_words))
        pairs = np.outer(self._of_left2, self._of_left1) * norms.reshape(n_words, n_words)
        first = pairs.sum(axis=1)
        return [first[None] / first.sum(), pairs / first[:, None]]

    def _norms_after_start(self) -> np.ndarray:
        """Norms of the contexts (s, j) of all words j, ``(V,)``: a sum of V² weights."""
        contexts = np.full(self.n_words, self.start), self._vocabulary
        if self.n_words**2 <= _TABLE:
            return self._norms(*contexts)
        own = [*map(str, (self._key, self.n_words, float(self.gamma), self.start)), self.predicted]
        return kept("start_norms", [*own, self.shared_xi], lambda: self._norms(*contexts))

    # Sampling

    def _sample_block(self, stream: np.random.Generator, length: int) -> np.ndarray:
        """All sentences of one stream, ``(_SENTENCES, length)``."""
        history, begun = (self._begin_large if self._is_large else self._begin)(stream, length)
        end = history.shape[1]
        at = np.full(_SENTENCES, begun)
        active = np.flatnonzero(at < end)
        while active.size:
            here = at[active]
            left2, left1 = history[active, here - 2], history[active, here - 1]
            word, bound, deciding = self._propose(stream, active, left2, left1)
            accepted = deciding * bound < self._nearness(left2, left1, word)
            history[active, here] = word  # a rejected word is overwritten by the next proposal
            at[active] += accepted
            active = active[here + accepted < end]
        return history[:, end - length :]

    def _propose(self, stream, active, left2, left1):
        """A word for each of the ``active`` sentences, its bound, and a draw to compare it with."""
        # Draws for finished sentences too: no sentence then depends on another, or on length.
        if self._is_large:
            step, place, deciding = stream.random((3, _SENTENCES))[:, active]
            word, height = self._stairs.draw(left1, step, place)
            bound = self._nearest[left2 - left1] * height / self._of_word[word - 1]
        else:
            proposing, deciding = stream.random((2, _SENTENCES))[:, active]
            word = self._envelope.draw(left1 - 1, proposing) + 1
            bound = self._bound(left2, left1, word)
        return word, bound, deciding

    def _begin(self, stream: np.random.Generator, length: int) -> tuple[np.ndarray, int]:
        """Sentences with their first words drawn from tables, and where to go on."""
        words = np.empty((_SENTENCES, length), dtype=np.int64)
        for position, sampler in enumerate(self._start_samplers[:length]):
            rows = words[:, 0] - 1 if position else np.zeros(_SENTENCES, dtype=np.int64)
            words[:, position] = sampler.draw(rows, stream.random(_SENTENCES)) + 1
        return self._history(words), 2

    def _begin_large(self, stream: np.random.Generator, length: int) -> tuple[np.ndarray, int]:
        """The same by rejection of the first two words together: j as often as p(j | s) says.

        For p(j | s) · p(k | s, j) ∝ α(j) · β(s, j) · β(k, j), which needs no sum over k.
        """
        history = np.empty((_SENTENCES, max(length, 2) + 1), dtype=np.int64)
        history[:, 0] = self.start
        active = np.arange(_SENTENCES)
        while active.size:
            which, step, place, deciding = stream.random((4, _SENTENCES))[:, active]
            j = self._firsts.draw(np.zeros_like(active), which) + 1
            k, height = self._stairs.draw(j, step, place)
            bound = self._nearest[self.start - j] * height
            accepted = deciding * bound < self._weights(history[active, 0], j, k)
            history[active, 1], history[active, 2] = j, k
            active = active[~accepted]
        return history[:, : length + 1], 3

    def _bound(self, left2: np.ndarray, left1: np.ndarray, word: np.ndarray) -> np.ndarray:
        """Maximum of :meth:`_nearness` over ξ, up to what the envelope leaves out."""
        j, k = self._roles(left1, word)
        of_k = self._nearest[k - j]
        # With j predicted, |i − j| changes with the proposed word; 1 bounds its power for all.
        return self._nearest[left2 - j] * of_k if self.predicted == "last" else of_k

    @cached_property
    def _envelope(self) -> InverseCdf:
        """Proposals for a word given left1: its weight if β(k, j) had its most favourable ξ."""
        j, k = self._roles(self._vocabulary[:, None], self._vocabulary)
        return InverseCdf(self._nearest[k - j] * self._of_word)

    @cached_property
    def _is_large(self) -> bool:
        """Whether a table of words × words is too large, so that proposals need a staircase."""
        large = self.n_words**2 > _TABLE
        if large and (self.predicted != "last" or self.start == "joint"):
            raise ValueError(
                f"this reading samples from a table of words × words, too large for {self.n_words} "
                f"words: take at most {int(_TABLE**0.5)}, or the default reading"
            )
        return large

    @cached_property
    def _stairs(self) -> Staircase:
        return Staircase(self._of_word, self._nearest)

    @cached_property
    def _firsts(self) -> InverseCdf:
        """Proposals for the first word: as many as there are for the pairs that begin with it."""
        nearness = self._nearest[self.start - self._vocabulary]
        return InverseCdf((self._of_left1 * nearness * self._stairs.areas)[None])

    @cached_property
    def _start_samplers(self) -> list[InverseCdf]:
        return [InverseCdf(table) for table in self._start_tables]
