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

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Literal

import numpy as np

XI_VALUES = 6
"""ξ is one of 0, …, 5."""

BLOCK_SENTENCES = 4096
"""Sentences with one random stream: part of what a seed means, so it is no setting."""

BLOCK_WEIGHTS = 1 << 15
"""Trigram weights computed at once, so few that they stay in the processor's cache."""

_BITS = 21
_LARGEST = (1 << _BITS) - 1  # three indices fit into one 64-bit number


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
        order i, k, j, and j is predicted: p(j | i, k) ∝ α(j) · β(i, j) · β(k, j).

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
        if not 1 <= n_words <= _LARGEST:
            raise ValueError(f"n_words must be between 1 and {_LARGEST}, not {n_words}")
        if not 0 < gamma < np.inf:
            raise ValueError(f"gamma must be a positive number, not {gamma}")
        if start != "joint" and not (isinstance(start, int) and 0 <= start <= _LARGEST):
            raise ValueError(f'start must be "joint" or between 0 and {_LARGEST}, not {start!r}')
        if predicted not in ("last", "middle"):
            raise ValueError(f'predicted must be "last" or "middle", not {predicted!r}')
        self.n_words = n_words
        self.gamma = gamma
        self.start = start
        self.shared_xi = shared_xi
        self.predicted = predicted
        self._key = _generator(seed).integers(1 << 64, dtype=np.uint64)

        self._vocabulary = words = np.arange(1, n_words + 1)
        frequent = np.log(words + 1) / np.log(51) / 50
        alpha, rank = np.where(words <= 50, frequent, 1 / words), words**-gamma
        # What the trigram's weight takes from one word alone, by the word's place in a sentence.
        self._left2_factor = rank
        self._left1_factor, self._next_factor = (
            (alpha, rank) if predicted == "last" else (rank, alpha)
        )
        # (|d| + 1)^−γ and its maximum over d, …, d + 5, at d + offset for every difference d.
        self._offset = n_words if start == "joint" else max(n_words, start)
        differences = np.arange(-self._offset, self._offset + XI_VALUES)
        self._near = (np.abs(differences) + 1.0) ** -gamma
        windows = np.lib.stride_tricks.sliding_window_view(self._near, XI_VALUES)
        self._nearest = windows.max(axis=1)

    def xi(self, i, j, k) -> tuple[np.ndarray, np.ndarray]:
        """The ξ of β(i, j) and the ξ of β(k, j) in the triple (i, j, k) of appendix A.

        Arguments are int arrays that broadcast, in the appendix's roles whatever the order in a
        sentence; i may also be the start index. Both results are int64, 0…5.
        """
        named = {"i": i, "j": j, "k": k}
        indices = np.broadcast_arrays(*(_indices(*item) for item in named.items()))
        of_i, of_k = self._xi(*(index.reshape(-1) for index in indices))
        return of_i.reshape(indices[0].shape), of_k.reshape(indices[0].shape)

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
            self._words("left2", left2, lowest=0), self._words("left1", left1, lowest=0)
        )
        if np.any(bad := (left1 == 0) & (left2 != 0)):
            raise ValueError(f"left1 is the start token 0, but left2 is word {left2[bad][0]}")
        shape, left2, left1 = left1.shape, left2.reshape(-1), left1.reshape(-1)
        probs = np.empty((left1.size, self.n_words))

        def fill(rows: slice) -> None:
            probs[rows] = self._distributions(left2[rows], left1[rows])

        self._prepare()
        _in_blocks(fill, left1.size, self._block_contexts)
        return probs.reshape(*shape, self.n_words)

    def log_prob(self, sentences) -> np.ndarray:
        """Log-probability of each word given the words before it, nats.

        ``sentences`` is ``(N, T)``, int, words 1…V; the result is ``(N, T)``, float64.
        """
        words = self._words("sentences", sentences, lowest=1)
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

        Returns ``(n_sentences, length)``, int64, words 1…V.
        """
        if n_sentences < 0:
            raise ValueError(f"n_sentences must be at least 0, not {n_sentences}")
        if length < 1:
            raise ValueError(f"length must be at least 1, not {length}")
        sentences = np.empty((n_sentences, length), dtype=np.int64)
        streams = _generator(seed).spawn(-(-n_sentences // BLOCK_SENTENCES))

        def fill(rows: slice) -> None:
            block = self._sample_block(streams[rows.start // BLOCK_SENTENCES], length)
            sentences[rows] = block[: rows.stop - rows.start]

        self._prepare()
        _in_blocks(fill, n_sentences, BLOCK_SENTENCES)
        return sentences

    # Weights. From here on left2 may be the start index, as in the appendix.

    def _xi(self, i: np.ndarray, j: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both ξ, from the two halves of one output of the SplitMix64 generator.

        The triple is the output's number, and the language's key is the generator's state (Steele,
        Lea & Flood, 2014). Arguments are not 0-dimensional and broadcast; (i, j) comes first.
        """
        bits = (((i << 2 * _BITS) + (j << _BITS)) + k).view(np.uint64)
        bits *= np.uint64(0x9E3779B97F4A7C15)
        bits += self._key
        bits ^= bits >> np.uint64(30)
        bits *= np.uint64(0xBF58476D1CE4E5B9)
        bits ^= bits >> np.uint64(27)
        bits *= np.uint64(0x94D049BB133111EB)
        bits ^= bits >> np.uint64(31)
        of_i = (((bits >> np.uint64(32)) * np.uint64(XI_VALUES)) >> np.uint64(32)).view(np.int64)
        if self.shared_xi:
            return of_i, of_i
        bits &= np.uint64(0xFFFFFFFF)
        bits *= np.uint64(XI_VALUES)
        bits >>= np.uint64(32)
        return of_i, bits.view(np.int64)

    def _differences(self, left2: np.ndarray, left1: np.ndarray, word: np.ndarray):
        """i − j and k − j, as positions in the tables of powers."""
        j, k = (left1, word) if self.predicted == "last" else (word, left1)
        return left2 - j + self._offset, k - j + self._offset

    def _nearness(self, left2: np.ndarray, left1: np.ndarray, word: np.ndarray) -> np.ndarray:
        """The part of β(i, j) · β(k, j) that has the ξ in it; arguments broadcast."""
        j, k = (left1, word) if self.predicted == "last" else (word, left1)
        of_i, of_k = self._xi(left2, j, k)
        to_i, to_k = self._differences(left2, left1, word)
        nearness = self._near.take(of_i + to_i)
        nearness *= self._near.take(of_k + to_k)
        return nearness

    def _weights(self, left2: np.ndarray, left1: np.ndarray, word: np.ndarray) -> np.ndarray:
        """p(word | left2, left1) up to a factor of the context; arguments broadcast."""
        return self._nearness(left2, left1, word) * self._next_factor.take(word - 1)

    def _norms(self, left2: np.ndarray, left1: np.ndarray) -> np.ndarray:
        """Sum of the weights over the vocabulary, ``(C,)`` for ``(C,)`` contexts."""
        norms = np.empty(left1.size)

        def fill(rows: slice) -> None:
            weights = self._weights(left2[rows, None], left1[rows, None], self._vocabulary)
            norms[rows] = weights.sum(axis=1)

        _in_blocks(fill, left1.size, self._block_contexts)
        return norms

    def _distributions(self, left2: np.ndarray, left1: np.ndarray) -> np.ndarray:
        """``(C, V)`` normalised distributions for ``(C,)`` contexts, 0 being the start token."""
        probs = np.empty((left1.size, self.n_words))
        missing = (left2 == 0).astype(int) + (left1 == 0)
        for position, table in enumerate(self._start_tables):
            rows = missing == 2 - position
            probs[rows] = table[left1[rows] - 1 if position else 0]
        rows = missing <= 2 - len(self._start_tables)
        left2 = np.where(left2 == 0, self._start_index, left2)
        weights = self._weights(left2[rows, None], left1[rows, None], self._vocabulary)
        probs[rows] = weights / weights.sum(axis=1, keepdims=True)
        return probs

    # The start of a sentence

    @cached_property
    def _start_tables(self) -> list[np.ndarray]:
        """Distributions of the words that the trigram rule does not give.

        ``(1, V)`` for the first word and, with the joint's own marginals, ``(V, V)`` for the
        second given the first.
        """
        words, n_words = self._vocabulary, self.n_words
        if self.start != "joint":
            weights = self._left1_factor * self._norms(np.full(n_words, self.start), words)
            return [weights[None] / weights.sum()]
        norms = self._norms(np.repeat(words, n_words), np.tile(words, n_words))
        pairs = np.outer(self._left2_factor, self._left1_factor) * norms.reshape(n_words, n_words)
        return [pairs.sum(axis=1)[None] / pairs.sum(), pairs / pairs.sum(axis=1, keepdims=True)]

    def _history(self, words: np.ndarray) -> np.ndarray:
        """``words`` with the start index before them, where the trigram rule takes it."""
        if self.start == "joint":
            return words
        return np.pad(words, ((0, 0), (1, 0)), constant_values=self.start)

    # Sampling

    def _sample_block(self, stream: np.random.Generator, length: int) -> np.ndarray:
        """``BLOCK_SENTENCES`` sentences from one stream: ``(BLOCK_SENTENCES, length)``."""
        words = np.empty((BLOCK_SENTENCES, length), dtype=np.int64)
        for position, sampler in enumerate(self._start_samplers[:length]):
            rows = words[:, 0] - 1 if position else np.zeros(BLOCK_SENTENCES, dtype=np.int64)
            words[:, position] = sampler.draw(rows, stream.random(BLOCK_SENTENCES)) + 1
        history = self._history(words)
        end = history.shape[1]
        at = np.full(BLOCK_SENTENCES, 2)
        open_rows = np.flatnonzero(at < end)
        while open_rows.size:
            # Draws for finished sentences too: a sentence then depends on no other, nor on length.
            proposing, deciding = stream.random((2, BLOCK_SENTENCES))[:, open_rows]
            here = at[open_rows]
            left2, left1 = history[open_rows, here - 2], history[open_rows, here - 1]
            word = self._envelope.draw(left1 - 1, proposing) + 1
            accepted = deciding * self._bound(left2, left1, word) < self._nearness(
                left2, left1, word
            )
            history[open_rows, here] = word
            at[open_rows] = here + accepted
            open_rows = open_rows[here + accepted < end]
        return history[:, end - length :]

    def _bound(self, left2: np.ndarray, left1: np.ndarray, word: np.ndarray) -> np.ndarray:
        """Upper bound of :meth:`_nearness` that differs from the envelope by the context alone."""
        to_i, to_k = self._differences(left2, left1, word)
        bound = self._nearest.take(to_k)
        # Where i − j depends on the word, the envelope holds no such factor, and 1 bounds it.
        return bound * self._nearest.take(to_i) if self.predicted == "last" else bound

    @cached_property
    def _envelope(self) -> "_InverseCdf":
        """Proposals for the next word given left1: the weights with the most favourable ξ."""
        left1, word = self._vocabulary[:, None], self._vocabulary
        _, to_k = self._differences(left1, left1, word)
        return _InverseCdf(self._nearest.take(to_k) * self._next_factor)

    @cached_property
    def _start_samplers(self) -> list["_InverseCdf"]:
        return [_InverseCdf(table) for table in self._start_tables]

    # Parts

    def _prepare(self) -> None:
        """Build the tables before threads share them."""
        _ = self._start_samplers, self._envelope

    @property
    def _block_contexts(self) -> int:
        return max(1, BLOCK_WEIGHTS // self.n_words)

    @property
    def _start_index(self) -> int:
        return 0 if self.start == "joint" else self.start

    def _words(self, name: str, values, lowest: int) -> np.ndarray:
        """``values`` as int64, each a word of the language or, from ``lowest`` 0, the start."""
        words = _indices(name, values)
        if np.any(bad := (words < lowest) | (words > self.n_words)):
            raise ValueError(
                f"{name} holds {words[bad][0]}, but words are numbered {lowest} to {self.n_words}"
            )
        return words


class _InverseCdf:
    """Draws from the rows of a table of weights by inverting their cumulative sums."""

    def __init__(self, weights: np.ndarray):
        """``weights`` is ``(R, V)``, one unnormalised distribution a row."""
        self._columns = weights.shape[1]
        cdf = np.cumsum(weights, axis=1)
        cdf /= cdf[:, -1:]
        cdf += np.arange(len(cdf))[:, None]  # one increasing sequence: row r lies in [r, r + 1]
        self._cdf = cdf.reshape(-1)

    def draw(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A column index for each row number in ``rows``, from draws in [0, 1)."""
        columns = self._cdf.searchsorted(rows + uniform, side="right") - rows * self._columns
        return np.minimum(columns, self._columns - 1)  # rows + uniform may round up to rows + 1


def _indices(name: str, values) -> np.ndarray:
    array = np.asarray(values)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integers, not {array.dtype}")
    return array.astype(np.int64)


def _generator(seed) -> np.random.Generator:
    if seed is None:
        raise ValueError("seed must be given, so that the result can be had again")
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed {seed!r} is not valid: {error}") from None


def _in_blocks(fill: Callable[[slice], None], size: int, block: int) -> None:
    """``fill`` each slice of at most ``block`` of ``size`` rows, in threads.

    NumPy lets other threads run while it computes, and the slices do not depend on their number.
    """
    slices = [slice(start, min(start + block, size)) for start in range(0, size, block)]
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, slices):
            pass
