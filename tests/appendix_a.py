"""The synthetic language by brute force, for the tests of it."""

import itertools
import math

from paperlib.trigram import TrigramLanguage

UNLIKELY = 1e-4
"""Below this p-value a chi-squared test fails; seeds are fixed, so it does not fail by chance."""


class Reference:
    """Appendix A word for word, in loops; only the drawn ξ are the language's own."""

    def __init__(self, language: TrigramLanguage):
        self.language = language
        self.words = range(1, language.n_words + 1)

    def alpha(self, j):
        return 1 / 50 * math.log(j + 1) / math.log(51) if j <= 50 else 1 / j

    def beta(self, i, j, xi):
        # As a left context, i gives a constant factor, infinite for the start index 0.
        return ((i or 1) * (abs(i - j + xi) + 1)) ** -self.language.gamma

    def joint(self, i, j, k):
        xi_of_i, xi_of_k = self.language.xi(i, j, k)
        return self.alpha(j) * self.beta(i, j, int(xi_of_i)) * self.beta(k, j, int(xi_of_k))

    def weight(self, first, second, third):
        if self.language.predicted == "last":
            return self.joint(first, second, third)
        return self.joint(first, third, second)

    def following(self, left2, left1):
        weights = [self.weight(left2, left1, word) for word in self.words]
        return [weight / sum(weights) for weight in weights]

    def first_two(self):
        """p(w1, w2) as a dictionary."""
        pairs = dict.fromkeys(itertools.product(self.words, repeat=2))
        for a, b in pairs:
            if self.language.start == "joint":
                pairs[a, b] = sum(self.weight(a, b, c) for c in self.words)
            else:
                pairs[a, b] = self.weight(self.language.start, a, b)
        total = sum(pairs.values())
        return {pair: weight / total for pair, weight in pairs.items()}

    def sentences(self, length):
        """Every sentence of at least two words with its probability."""
        probabilities = self.first_two()
        for _ in range(length - 2):
            probabilities = {
                (*sentence, word): probability * p
                for sentence, probability in probabilities.items()
                for word, p in zip(self.words, self.following(*sentence[-2:]), strict=True)
            }
        return probabilities
