"""The verdicts in a few sentences and a small table, from the entries of the ledger."""

import pandas as pd

from paperlib.reporting import claims
from paperlib.reporting.claims import NOT_REPRODUCED, NOT_RUN, PARTLY, REPRODUCED

KEY_CLAIMS = {
    "overestimates_frequent": "language models overestimate frequent words",
    "perturbed_ftd_from_perturbed_test_ppl": "fine-tuning repairs the perturbed model as far as "
    "in the paper",
    "reaches_p_hat": "the chosen word's probability reaches the discriminator's estimate",
    "cross_entropy_cannot_repair": "cross-entropy alone cannot repair the perturbed model",
    "oscillation_frequent": "at equal rates, cross-entropy makes probabilities oscillate more",
    "initial_ftd_from_initial_ratio": "fine-tuning reduces the initial model's imbalance between "
    "frequent and rare words",
    "eq14_first": "Proposition 1",
    "step_factor": "near p̂, steps are smaller than cross-entropy's by the factor ε/p̂",
    "discriminator_below_log4": "the discriminator gets below log 4",
    "finetuning_lowers_test": "fine-tuning lowers test perplexity on Penn Treebank",
    "finetuning_size_test": "the gain on Penn Treebank is as large as in the paper",
    "dropout_hurts": "dropout hurts fine-tuning",
    "rare_grow_doc_ptb": "rare words' probabilities grow on Penn Treebank (direct output "
    "connection)",
    "frequent_undamaged_doc_ptb": "frequent words are not damaged on Penn Treebank (direct output "
    "connection)",
    "dynamic_mild": "dynamic evaluation leaves little of the gain, or nothing",
    "large_gain": "fine-tuning lowers perplexity in the set-up of section 4.3",
}
"""The claims that the conclusion names, in a few words each."""

CONTROLS = {
    "oscillation_faster_frequent": "at ten times the rate of cross-entropy, fine-tuning with "
    "discriminator still makes probabilities oscillate less",
    "mos_below_log4": "the mixture of softmaxes' discriminator gets below log 4 too",
    "doc_ptb_beyond_cross_entropy_test": "on Penn Treebank, the gain is more than that of "
    "cross-entropy alone (direct output connection)",
    "mos_ptb_beyond_cross_entropy_test": "on Penn Treebank, the gain is more than that of "
    "cross-entropy alone (mixture of softmaxes)",
    "doc_ptb_beyond_training_test": "on Penn Treebank, the gain is more than that of training with "
    "dropout that goes on (direct output connection)",
    "mos_ptb_beyond_training_test": "on Penn Treebank, the gain is more than that of training with "
    "dropout that goes on (mixture of softmaxes)",
    "large_beyond_cross_entropy": "at scale, the gain is more than that of cross-entropy alone",
}
"""The same of our controls, which are no statements of the paper."""

PARTS = {
    "Section 4.3, at scale": ("4.3",),
    "Section 4.2, Table 3": ("4.2", "Table 3"),
    "Section 4.1, Table 2, Figure 3": ("4.1", "Table 2"),
    "Proposition 1": ("Proposition", "appendix B"),
    "Section 3, Figures 1 and 2": ("Figure",),
    "Section 3, Table 1": ("Table 1", "section 3"),
    "Appendix A": ("appendix A",),
    "Section 2": ("section 2",),
    "Abstract, section 5": ("",),
}
"""Parts of the paper by what the place of a claim has in it; the first that fits counts."""


def conclusion(entries: list[dict]) -> list[str]:
    """Three paragraphs: how many claims came to what, what the key claims came to, our controls."""
    number, ours = claims.count(entries), claims.count(entries, controls=True)
    every = sum(number.values())
    first = (
        f"Of {every} claims of the paper, {every - number[NOT_RUN]} could be judged at this scale: "
        f"{number[REPRODUCED]} reproduce, {number[PARTLY]} do so partly or cannot be told, and "
        f"{number[NOT_REPRODUCED]} do not. Of those that reproduce, {_constructed(entries)} do so "
        "by construction, as is noted there."
    )
    said = {
        REPRODUCED: "Of the main ones, these reproduce",
        PARTLY: "These do so partly, or the run cannot tell",
        NOT_REPRODUCED: "These do not",
    }
    controls = (
        "Beside them stand controls of ours, which are no statements of the paper; "
        f"{sum(ours.values()) - ours[NOT_RUN]} of {sum(ours.values())} could be judged."
    )
    holds = {
        REPRODUCED: "These hold",
        PARTLY: "These hold partly, or the run cannot tell",
        NOT_REPRODUCED: "These do not hold",
    }
    named = _named(entries, CONTROLS, holds)
    return [first, _named(entries, KEY_CLAIMS, said), f"{controls} {named}".strip()]


def across(ledgers: dict[str, list[dict]]) -> pd.DataFrame:
    """Verdicts on the key claims, a row each, and the numbers of all claims, by ledger."""
    names, columns = [text[0].upper() + text[1:] for text in KEY_CLAIMS.values()], {}
    for title, entries in ledgers.items():
        verdicts = {entry["claim"]: entry["verdict"] for entry in entries}
        shown = [verdicts[name] for name in KEY_CLAIMS]
        *judged, not_run = claims.count(entries).values()
        columns[title] = ["–" if verdict == NOT_RUN else verdict for verdict in shown]
        columns[title] += [" / ".join(map(str, judged)), str(_constructed(entries))]
        counted = f"*All {sum(judged) + not_run} claims: reproduced / partly / not*"
        constructed = "*Of those that reproduce, by construction*"
    return pd.DataFrame(columns, index=pd.Index([*names, counted, constructed], name="Main claims"))


def _constructed(entries: list[dict]) -> int:
    """How many of the paper's claims reproduce by construction."""
    return sum(one["constructed"] and one["verdict"] == REPRODUCED for one in entries)


def _named(entries: list[dict], words: dict[str, str], said: dict[str, str]) -> str:
    """A sentence for each verdict that one of these entries has."""
    verdicts = {entry["claim"]: entry["verdict"] for entry in entries}
    sentences = []
    for verdict, begins in said.items():
        found = [text for name, text in words.items() if verdicts.get(name) == verdict]
        if found:
            sentences.append(f"{begins}: {'; '.join(found)}.")
    return " ".join(sentences)


def part_of(place: str) -> str:
    """The part of the paper that a place is in."""
    return next(name for name, hints in PARTS.items() if any(hint in place for hint in hints))


def by_part(entries: list[dict]) -> dict[str, dict[str, int]]:
    """Number of the paper's claims by part and verdict, the parts in the order of the paper."""
    found: dict[str, list[dict]] = {}
    for entry in entries:
        found.setdefault(part_of(entry["place"]), []).append(entry)
    return {part: claims.count(some) for part, some in found.items()}


def unmoved(trainings: list[dict]) -> list[str]:
    """Fine-tunings that kept the weights they started from: no epoch was better on validation."""
    return [
        f"{one['study']}, {one['training']}"
        for one in trainings
        if one["best_epoch"] == 0
        and any(kind in one["stage"].split("/")[0] for kind in ("finetuning", "cross_entropy"))
    ]
