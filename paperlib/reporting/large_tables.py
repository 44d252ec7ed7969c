"""Section 4.3 beside the paper's sentence: perplexities, epochs and words seen."""

from collections import Counter

import numpy as np
import pandas as pd

from paperlib.large_study import LargeStudy
from paperlib.reporting import paper

TITLES = {
    "text": "text",
    "words": "vocabulary",
    "seen": "words seen by the language model",
    "discriminator": "parts for the discriminator",
    "finetuning": "for fine-tuning",
    "initial": "perplexity, initial",
    "finetuned": "fine-tuned",
    "change": "change, %",
    "true": "true",
}


def large_scale(study: LargeStudy) -> pd.DataFrame:
    """The paper's, ours, and ours by cross-entropy alone, one row each.

    Perplexities are those of the test text, ``true`` where p is known; ``change`` is relative, in
    per cent; ``seen`` are tokens.
    """
    tuned, alone = study.finetuned(), study.cross_entropy
    at_once = study.text.parts_at_once
    ours = {
        "text": study.title,
        "words": study.text.n_words,
        "seen": study.tokens_seen(study.initial.progress.epoch),
        "discriminator": at_once * study.discriminator.progress.epoch,
        "finetuning": at_once * tuned.progress.epoch,
        "initial": study.perplexities(study.initial)["test"],
        "finetuned": study.perplexities(tuned)["test"],
        "true": float(np.exp(-study.test_log_p.mean())) if study.knows_p else np.nan,
    }
    without = {
        "discriminator": np.nan,
        "finetuning": at_once * alone.progress.epoch,
        "finetuned": study.perplexities(alone)["test"],
    }
    runs = {"paper": paper.LARGE, "ours": ours, "ours, cross-entropy alone": ours | without}
    table = pd.DataFrame(runs.values(), index=pd.Index(runs, name="run"))
    table["change"] = 100 * (table["finetuned"] / table["initial"] - 1)
    return table[list(TITLES)].reset_index()


def large_scale_for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`large_scale` with titles; what is not known, or not there, is a dash."""
    shown = table.copy()
    formats = dict.fromkeys(("words", "seen", "discriminator", "finetuning"), "{:,.0f}")
    formats |= dict.fromkeys(("initial", "finetuned", "true"), "{:.2f}") | {"change": "{:+.2f}"}
    for column, form in formats.items():
        shown[column] = shown[column].map(form.format).replace("nan", "–")
    return shown.rename(columns=TITLES)


def layers(study: LargeStudy) -> pd.DataFrame:
    """Parameters of each part of the network, and of a full softmax in the place of the last."""
    rows = Counter()
    for name, parameter in study.initial.model.named_parameters():
        rows[name.split(".")[0]] += parameter.numel()
    rows["a full softmax instead"] = study.text.n_words * (study.settings.network.hidden[-1] + 1)
    return pd.DataFrame({"parameters": rows}).rename_axis("part").reset_index()


def throughput_for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The table of :func:`paperlib.scaling.measured` with titles and units."""
    seconds = {name: table[name].map("{:.4f}".format) for name in ("work", "update", "exchange")}
    gigabytes = {
        f"memory of a discriminator's step, GB{also}": (table[name] / 1e9).map("{:.2f}".format)
        for name, also in (("memory", ""), ("predicted_memory", ", predicted"))
    }
    return pd.DataFrame(
        {
            "processes": table["processes"].map("{:.0f}".format),
            "words a second": table["words_per_second"].map("{:,.0f}".format),
            "predicted": table["predicted"].map("{:,.0f}".format),
            "error": table["error"].map("{:+.0%}".format),
            "seconds of a step": table["seconds"].map("{:.4f}".format),
            **seconds,
            "cores busy, each": table["busy"].map("{:.2f}".format),
            **gigabytes,
        }
    )


def cost_for_people(costs: pd.DataFrame) -> pd.DataFrame:
    """Rows of :func:`paperlib.scaling.cost` with titles and units."""
    return pd.DataFrame(
        {
            "text": costs["text_bytes"].map(lambda size: f"{size / 1e9:,.0f} GB"),
            "processes": costs["processes"].astype(str) + " × " + costs["processor"],
            "streams in all": costs["streams"].map("{:,}".format),
            "words a second": costs["words_per_second"].map("{:,.0f}".format),
            "sent in a step, MB": costs["bytes_sent"].map(lambda size: f"{size / 1e6:.0f}"),
            "exchange": costs["exchange_share"].map("{:.0%}".format),
            "hours": costs["hours"].map("{:.3g}".format),
            "memory, GB": costs["memory"].map(lambda size: f"{size / 1e9:.2f}"),
        }
    )
