"""Numbers of the paper that ours stand beside, each with its place."""

TABLE1 = {
    "true": {"test_ppl": 78.14, "freq_ppl": 29.74, "rare_ppl": 766.53, "ratio": 25.8},
    "initial": {
        "test_ppl": 84.89,
        "freq_ppl": 31.27,
        "rare_ppl": 899.76,
        "ratio": 28.8,
        "diff_mean": -0.083,
        "diff_std": 0.445,
    },
    "initial_ftd": {
        "test_ppl": 84.88,
        "freq_ppl": 31.30,
        "rare_ppl": 897.30,
        "ratio": 28.7,
        "diff_mean": -0.083,
        "diff_std": 0.445,
    },
    "perturbed": {
        "test_ppl": 86.01,
        "freq_ppl": 31.24,
        "rare_ppl": 942.71,
        "ratio": 30.2,
        "diff_mean": -0.096,
        "diff_std": 0.591,
        "other_ppl": 84.56,
    },
    "perturbed_ftd": {
        "test_ppl": 85.63,
        "freq_ppl": 31.27,
        "rare_ppl": 926.78,
        "ratio": 29.6,
        "diff_mean": -0.092,
        "diff_std": 0.521,
        "other_ppl": 84.56,
    },
}
"""Table 1; ``other_ppl``, on all words but the chosen one, is from the text of section 3."""

CHOSEN_WORD = {"q0": 1e-8, "p_hat": 1e-6, "p": 1e-3}
"""Orders of magnitude of the chosen word's probability (end of section 3)."""

SHARES = {"frequent": 0.705, "almost_frequent": 0.147, "other": 0.148}
"""Shares of the training words by class (appendix A)."""
