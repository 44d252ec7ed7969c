"""What section 4 would take on a GPU in the profile ``paper``: its steps times what one took.

The times are those of ``gpu_steps.csv``. Where a step was timed in another profile alone, which has
more streams, the hours are an upper bound; validation comes on top, and dynamic evaluation.
"""

from pathlib import Path

import pandas as pd

from paperlib import settings

TOKENS = {"ptb": 929_589, "wikitext-2": 2_088_628}
"""Training text with the ends of sentences."""

STEPS = {
    "language_model": "language model",
    "second_run": "language model",
    "discriminator": "discriminator",
    "finetuning": "fine-tuning",
}
"""Trainings of an experiment, and the steps that they consist of."""

TIMED = {
    "mos_ptb": ("paper, mixture on Penn Treebank (12 streams)", "medium, mixture on Penn Treebank"),
    "doc_ptb": ("medium, direct output connection on Penn Treebank",),
    "mos_wikitext2": ("medium, mixture on WikiText-2 (2^26 logits at once)",),
    "doc_wikitext2": (),
}
"""What was timed, by experiment; the first that has a step counts."""


def steps_of_epoch(training: settings.StreamTraining, tokens: int) -> float:
    """Pieces of one epoch, on average: one in twenty has half the usual length."""
    return tokens / training.batch_size / (0.975 * training.bptt)


def hours(folder: Path, profile: str = "paper") -> pd.DataFrame:
    """Hours of each training at its limit of epochs, a row each; no number where none was timed."""
    timed = pd.read_csv(folder / "gpu_steps.csv").set_index(["of", "step"])["ms"]
    rows = []
    for name, experiment in settings.load(profile).corpora.items():
        for kind, step in STEPS.items():
            training = getattr(experiment, kind)
            # All were timed in mixed precision.
            rounded = training.precision != "float32"
            found = [of for of in TIMED[name] if rounded and (of, step) in timed.index]
            ms = float(timed[found[0], step]) if found else float("nan")
            steps = steps_of_epoch(training, TOKENS[experiment.corpus])
            rows.append(
                {
                    "experiment": name,
                    "training": kind.replace("_", " "),
                    "epochs": training.max_epochs,
                    "steps": round(steps),
                    "ms": ms,
                    "hours": training.max_epochs * steps * ms / 3.6e6,
                    "bound": bool(found) and not found[0].startswith(profile),
                }
            )
    return pd.DataFrame(rows)


def for_people(table: pd.DataFrame) -> pd.DataFrame:
    """With *≤* before an upper bound."""
    shown = table[["experiment", "training", "epochs", "steps"]].rename(
        columns={"epochs": "epochs, at most", "steps": "steps an epoch"}
    )
    for column, digits in (("ms", 1), ("hours", 2)):
        shown[column] = [
            "not measured" if pd.isna(value) else f"{'≤ ' * bound}{value:.{digits}f}"
            for value, bound in zip(table[column], table["bound"], strict=True)
        ]
    return shown
