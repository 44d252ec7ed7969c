"""Tables beside the paper's numbers, as CSV for programs and Markdown for people."""

from pathlib import Path

import numpy as np
import pandas as pd

from paperlib.estimates import interval, over_seeds
from paperlib.reporting import paper
from paperlib.stages import Trained

TABLE1_TITLES = {
    "test_ppl": "Test ppl.",
    "freq_ppl": "Freq. ppl.",
    "rare_ppl": "Rare ppl.",
    "ratio": "Ratio",
    "diff_mean": "log q − log p, mean",
    "diff_std": "log q − log p, sd",
    "other_ppl": "Ppl. without the chosen word",
}
"""Columns of Table 1 by their names in files, with their headings for people."""

TABLE1_COLUMNS = tuple(TABLE1_TITLES)

TABLE1_NAMES = {
    "true": "True distribution p",
    "initial": "Initial model",
    "initial_ftd": "Initial model ftd.",
    "perturbed": "Perturbed model",
    "perturbed_ftd": "Perturbed model ftd.",
}


def table1(seeds: list[dict[str, dict[str, float]]]) -> pd.DataFrame:
    """Table 1 from one dictionary ``{model: {column: value}}`` a seed.

    Each column holds the mean over seeds, with the paper's value as its ``paper_`` twin and, for
    several seeds, the sample standard deviation as its ``_sd`` twin.
    """
    rows = []
    for model in TABLE1_NAMES:
        row = {"model": model}
        for column in TABLE1_COLUMNS:
            values = pd.Series([seed[model][column] for seed in seeds])
            row[column] = values.mean()
            if len(seeds) > 1:
                row[f"{column}_sd"] = values.std()
            row[f"paper_{column}"] = paper.TABLE1[model].get(column)
        rows.append(row)
    return pd.DataFrame(rows)


def table1_for_people(table: pd.DataFrame) -> pd.DataFrame:
    """Table 1 with ours and the paper's value in one cell: ``85.63 ± 0.12 (85.63)``."""
    digits = {"ratio": 1, "diff_mean": 3, "diff_std": 3}

    def cell(row: pd.Series, column: str) -> str:
        places = digits.get(column, 2)
        spread = f" ± {row[f'{column}_sd']:.{places}f}" if f"{column}_sd" in row else ""
        theirs = row[f"paper_{column}"]
        beside = "" if pd.isna(theirs) else f" ({theirs:.{places}f})"
        return f"{row[column]:.{places}f}{spread}{beside}"

    return pd.DataFrame(
        {"Estimating with": table["model"].map(TABLE1_NAMES)}
        | {
            title: [cell(row, column) for _, row in table.iterrows()]
            for column, title in TABLE1_TITLES.items()
        }
    )


def save_table(
    folder: Path, name: str, table: pd.DataFrame, *, title: str, shown: pd.DataFrame | None = None
) -> str:
    """Write ``name.csv`` with every digit, and ``name.md`` with ``title`` and ``shown``.

    ``shown`` is the table for people, ``table`` itself by default. Returns the Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / f"{name}.csv", index=False)
    body = (table if shown is None else shown).to_markdown(index=False, disable_numparse=True)
    markdown = f"**{title}**\n\n{body}\n"
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")
    return markdown


TABLE1_STEPS = (
    ("initial", "initial_ftd"),
    ("initial", "perturbed"),
    ("perturbed", "perturbed_ftd"),
)


def table1_differences(
    seeds: list[dict[str, dict[str, float]]],
    resampled: dict[str, dict[str, np.ndarray]] | None = None,
) -> pd.DataFrame:
    """What each step of Table 1 changes, paired by seed, and how it compares with the paper.

    ``low`` and ``high`` are a 95 % interval: over seeds, or, of a single seed, over ``resampled``
    test sentences where these are given. ``agrees`` looks at sign and size: *opposite sign*; *same
    sign*, with our difference as a multiple of the paper's; *no change here*, where ours would
    round to nothing in the paper's table; or, where the paper's own difference is within that
    rounding, *too small in the paper to tell*.
    """
    rounding = {"ratio": 0.1, "diff_mean": 0.001, "diff_std": 0.001}
    rows = []
    for before, after in TABLE1_STEPS:
        for column in TABLE1_COLUMNS:
            ours = [seed[after][column] - seed[before][column] for seed in seeds]
            row = {"step": f"{before} → {after}", "column": column, "ours": np.mean(ours)}
            if len(seeds) > 1:
                row["ours_sd"] = np.std(ours, ddof=1)
                row["low"], row["high"] = over_seeds(ours).low, over_seeds(ours).high
            elif resampled is not None:
                draws = resampled[after][column] - resampled[before][column]
                row["low"], row["high"] = interval(draws)
            theirs = paper.TABLE1[after].get(column), paper.TABLE1[before].get(column)
            if None not in theirs:
                row["paper"] = theirs[0] - theirs[1]
                row["agrees"] = _agreement(row["ours"], row["paper"], rounding.get(column, 0.01))
            rows.append(row)
    return pd.DataFrame(rows)


def validation_changes(runs: dict[str, list[Trained]]) -> pd.DataFrame:
    """What fine-tuning does to the validation perplexity, for runs of several seeds by name.

    A row a name: the mean over seeds of the perplexity ``before`` and of its ``change`` to the best
    epoch, with sample standard deviation and 95 % t interval of the change where there are several
    seeds. ``smallest`` is the change of the seed that gained least, ``largest`` of the one that
    gained most.
    """
    rows = []
    for name, trained in runs.items():
        before = np.array([run.history[0]["perplexity"] for run in trained])
        changes = np.array([run.progress.best for run in trained]) - before
        change = over_seeds(changes)
        rows.append(
            {"fine-tuning": name, "seeds": len(trained), "before": before.mean()}
            | {"change": change.value, "sd": change.sd, "low": change.low, "high": change.high}
            | {"smallest": changes.max(), "largest": changes.min()}
        )
    return pd.DataFrame(rows)


def rates_tried(search: dict[str, dict[float, Trained]], own: dict[str, float]) -> pd.DataFrame:
    """What :meth:`paperlib.synthetic.SyntheticStudy.search` reached, one row a learning rate.

    ``own`` is the profile's own rate of each kind of training, marked in the table.
    """
    criteria = {"discriminator": "valid. D", "finetuning": "valid. perplexity"}
    columns = ["training", "learning rate", "the profile's", "measure"]
    rows = [
        (kind, rate, "yes" if rate == own[kind] else "", criteria[kind], *_reached(run))
        for kind, tried in search.items()
        for rate, run in tried.items()
    ]
    return pd.DataFrame(rows, columns=[*columns, "best", "best epoch", "epochs"])


def _reached(run: Trained) -> tuple[float, int, int]:
    return run.progress.best, run.progress.best_epoch, run.progress.epoch


def _agreement(ours: float, theirs: float, rounding: float) -> str:
    if abs(theirs) < 1.5 * rounding:
        return "too small in the paper to tell"
    if abs(ours) < rounding / 2:
        return "no change here"
    if ours * theirs < 0:
        return "opposite sign"
    return f"same sign, {ours / theirs:.1f} × the paper's"
