"""Proposals for drawing words of the synthetic language by rejection.

A word k after the word j has a weight of at most k^−γ · nearest(k − j), whatever the other context
and ξ. Proposals follow this envelope exactly, from a table of words × words, or, for a large
vocabulary, a staircase above it: at most 3 log2 V + O(1) steps for each j.
"""

import numpy as np


class InverseCdf:
    """Draws from the rows of a table of weights by inverting their cumulative sums."""

    def __init__(self, weights: np.ndarray):
        """``weights`` is ``(R, C)``, one unnormalised distribution a row."""
        self._columns = weights.shape[1]
        cdf = np.cumsum(weights, axis=1)
        cdf /= cdf[:, -1:]
        cdf += np.arange(len(cdf))[:, None]  # one increasing sequence: row r lies in [r, r + 1]
        self._cdf = cdf.reshape(-1)

    def draw(self, rows: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """A column number for each row number in ``rows``, from draws in [0, 1)."""
        values = rows + uniform
        order = values.argsort()  # neighbours in the table one after another: half the time
        found = np.empty_like(rows)
        found[order] = self._cdf.searchsorted(values[order], side="right")
        # Rounding may have made rows + 1 of rows + uniform.
        return np.minimum(found - rows * self._columns, self._columns - 1)


class Staircase:
    """Proposals for k given j from a staircase above the envelope, for words 1…V.

    A step ends where k or the distance from j has doubled, so that it is nowhere more than some
    2^2γ times as high as the envelope.
    """

    def __init__(self, of_word: np.ndarray, nearest: np.ndarray):
        """``of_word`` ``(V,)`` is k^−γ; ``nearest`` is indexed by k − j, also negative.

        ``nearest`` must fall with the distance from its plateau, −5 ≤ k − j ≤ 0.
        """
        self._of_word, self._nearest = of_word, nearest
        n_words = len(of_word)
        j = np.arange(1, n_words + 1)[:, None]
        doubled = 1 << np.arange(n_words.bit_length())
        edges = [np.broadcast_to(doubled, (n_words, len(doubled))), j + doubled, j - 4 - doubled]
        edges.append(np.full((n_words, 1), n_words + 1))
        self._edges = np.sort(np.clip(np.hstack(edges), 1, n_words + 1), axis=1).astype(np.int32)
        first, end = self._edges[:, :-1].astype(np.int64), self._edges[:, 1:].astype(np.int64)
        areas = np.where(end > first, (end - first) * self._height(j, first, end), 0)
        self.areas = areas.sum(axis=1)
        """Area below each j's staircase, ``(V,)``."""
        self._steps = InverseCdf(areas)

    def draw(
        self, left1: np.ndarray, step: np.ndarray, place: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """A word for each word of ``left1``, and the height of the staircase there.

        ``step`` and ``place`` are independent draws in [0, 1).
        """
        rows = left1 - 1
        column = self._steps.draw(rows, step)
        first, end = (self._edges[rows, column + k].astype(np.int64) for k in (0, 1))
        word = first + (place * (end - first)).astype(np.int64)
        word = np.minimum(word, len(self._of_word))  # rounding may choose the empty step at the end
        return word, self._height(left1, first, end)

    def _height(self, j: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The envelope's largest value from ``first`` to before ``end``, or a little more."""
        last = np.maximum(end - 1, first)
        at_first = np.minimum(first, len(self._of_word))  # empty steps may begin after the end
        nearness = np.maximum(self._nearest[first - j], self._nearest[last - j])
        return self._of_word[at_first - 1] * nearness
