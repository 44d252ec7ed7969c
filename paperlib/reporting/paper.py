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

TABLE2 = {
    "initial": {
        "valid_loss": 3.99500,
        "valid_ppl": 54.31,
        "reverse_kl": 0.00024,
        "test_ppl": 52.45,
    },
    "discriminator": {
        "valid_loss": 4.00248,
        "valid_ppl": 53.90,
        "reverse_kl": 0.01527,
        "test_ppl": 52.12,
    },
    "dropout_discriminator": {"outcome": "both increase"},
    "no_discriminator": {
        "valid_loss": 4.01317,
        "valid_ppl": 54.16,
        "reverse_kl": 0.02126,
        "test_ppl": 52.38,
    },
    "dropout_no_discriminator": {"outcome": "both increase"},
}
"""Table 2, direct output connection on Penn Treebank; "both total loss and perplexity increase"."""

TABLE3 = {
    "mos_original": {"ptb": (56.54, 54.44), "wikitext2": (63.88, 61.45)},
    "mos_initial": {"ptb": (None, 54.66), "wikitext2": (64.35, 61.90)},
    "mos_finetuned": {"ptb": (55.75, 53.91), "wikitext2": (63.52, 61.19)},
    "mos_original_dynamic": {"ptb": (48.33, 47.69), "wikitext2": (42.41, 40.68)},
    "mos_finetuned_dynamic": {"ptb": (None, 47.68), "wikitext2": (42.83, 40.96)},
    "doc_original": {"ptb": (None, 52.38), "wikitext2": (60.29, 58.03)},
    "doc_initial": {"ptb": (54.31, 52.45), "wikitext2": (None, None)},
    "doc_finetuned": {"ptb": (53.90, 52.12), "wikitext2": (None, None)},
}
"""Table 3, validation and test perplexity; None where the paper's text has no value.

Rows named ``original`` quote Yang et al. (2017) and Takase et al. (2018).
"""

LARGE = {
    "text": "4 GB of English text",
    "words": 100_000,
    "discriminator": 60,
    "finetuning": 30,
    "initial": 129.08,
    "finetuned": 127.46,
}
"""Section 4.3: size of the vocabulary, epochs (parts of the text), and perplexities."""
