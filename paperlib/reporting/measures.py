"""Measures: what a notebook found, by name, with intervals, for the ledger of claims.

Each notebook that checks a claim writes one table ``measures_NN`` (``NN`` its number); the ledger
(:mod:`paperlib.reporting.claims`) reads all of them. Differences of perplexities are written
*after − before*.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from paperlib import notebooks
from paperlib.estimates import (
    LIMITED,
    NO_GAIN,
    ONE_RUN,
    STRETCHES,
    Estimate,
    estimate,
    from_error,
    interval,
    means_of_stretches,
    over_seeds,
    resampled_sums,
)
from paperlib.large_study import LargeStudy
from paperlib.reporting.stretches import (
    STRETCHED,
    T_STRETCHED,
    perplexities_of_stretches,
    steps_of_split,
    stretched,
)
from paperlib.reporting.tables import TABLE1_COLUMNS, TABLE1_STEPS, save_table
from paperlib.settings import Experiment, Profile, StreamTraining, Synthetic, load
from paperlib.stages import Trained
from paperlib.synthetic import SyntheticStudy
from paperlib.text_study import BEST, TextStudy
from paperlib.training import Progress

SENTENCES = "test sentences"
ORDER = ("true", "initial_ftd", "initial", "perturbed_ftd", "perturbed")
"""The rows of Table 1 by the paper's test perplexity, from the best."""


def save_measures(
    folder: Path, number: str, measures: Mapping[str, Estimate], *, paper_size: bool
) -> Styler:
    """Write ``measures_NN`` and return it, every row to be shown: one a measure, by ``measure``.

    ``paper_size`` is whether data and network have the paper's size, so that values themselves,
    and not only their differences, can be held against the paper's.
    """
    columns = ["measure", *(part.name for part in fields(Estimate))]  # there also without a row
    rows = [{"measure": name} | asdict(estimate) for name, estimate in measures.items()]
    table = pd.DataFrame(rows, columns=columns).assign(paper_size=paper_size)
    shown = table.drop(columns="paper_size")
    for column in ("value", "low", "high", "sd"):
        shown[column] = shown[column].map("{:.5g}".format).replace("nan", "")
    save_table(folder, f"measures_{number}", table, title="Measures for the ledger", shown=shown)
    return shown.style.hide(axis="index")  # a plain table is cut where it is long


def load_measures(folder: Path, plan: Profile) -> dict[str, dict]:
    """Measures in ``folder`` by name, each with the number of its ``notebook``.

    Only of notebooks that have a part in ``plan``: what another selection of experiments left there
    is of another run. Raises ``ValueError`` where two notebooks give the same name.
    """
    numbers = sorted(name.split("_")[0] for name in notebooks.planned(plan))
    found = {}
    for path in (folder / f"measures_{number}.csv" for number in numbers):
        if not path.is_file():
            continue
        for row in pd.read_csv(path).to_dict("records"):
            name = row.pop("measure")
            if name in found:
                raise ValueError(f"the measure {name!r} is in two tables, one of them {path.name}")
            found[name] = row | {"notebook": path.stem.removeprefix("measures_")}
    return found


def synthetic_at_paper_size(
    own: Synthetic, parts: Sequence[str] = ("language", "sentences", "model")
) -> bool:
    """Whether language, sentences and network of section 3, or these ``parts``, are the paper's."""
    paper = load("paper").synthetic
    return all(getattr(own, part) == getattr(paper, part) for part in parts)


def experiments_at_paper_size(own: Mapping[str, Experiment]) -> bool:
    """Whether text, network and length of the training of section 4 are the paper's."""
    paper = load("paper").corpora
    return all(
        name in paper
        and (one.corpus, one.first, one.network)
        == (paper[name].corpus, paper[name].first, paper[name].network)
        and one.language_model.max_epochs >= paper[name].language_model.max_epochs
        for name, one in own.items()
    )


def large_at_paper_size(study: LargeStudy) -> bool:
    """Whether section 4.3 was run on text of a folder, with the paper's network and parts."""
    own, paper = study.settings, load("paper").large
    return not study.knows_p and all(
        getattr(own, name) == getattr(paper, name)
        for name in ("words", "part_bytes", "network", "language_model", "finetuning")
    )


# Section 3


def of_table1(seeds: Sequence[dict], resampled: dict) -> dict[str, Estimate]:
    """Every cell and every difference of Table 1, as ``model.column`` and ``after-before.column``.

    ``seeds`` has a table ``{model: {column: value}}`` a seed, ``resampled`` one of arrays over
    resamples. ``order.smallest_gap`` is the smallest step of test perplexity from one of the
    paper's rows to the next worse one: above 0 where the order is the paper's.
    """

    def of(measure: Callable[[dict], float]) -> Estimate:
        return estimate(measure, seeds, resampled, SENTENCES)

    columns = (*TABLE1_COLUMNS, "rare_other_ppl")
    found = {
        f"{model}.{column}": of(lambda rows, m=model, c=column: rows[m][c])
        for model in seeds[0]
        for column in columns
    }
    steps = (*TABLE1_STEPS, *(("true", model) for model in seeds[0] if model != "true"))
    found |= {
        f"{after}-{before}.{column}": of(
            lambda rows, a=after, b=before, c=column: rows[a][c] - rows[b][c]
        )
        for before, after in steps
        for column in columns
    }
    found["order.smallest_gap"] = of(
        lambda rows: np.min(
            [
                rows[worse]["test_ppl"] - rows[better]["test_ppl"]
                for better, worse in pairwise(ORDER)
            ],
            axis=0,
        )
    )
    return found


def of_probabilities(seeds: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Estimate]:
    """Decades (log10) of the chosen word's mean probability: ``chosen.q0``, ``chosen.p_hat``, ….

    ``seeds`` has, for each seed, an array over sentences by name.
    """
    names = list(seeds[0])
    rows = [{name: float(values[name].mean()) for name in names} for values in seeds]
    stacked = np.stack([seeds[0][name] for name in names], axis=-1)
    means = resampled_sums(stacked) / len(stacked)
    resampled = dict(zip(names, means.T, strict=True))
    return {
        f"chosen.{name}": estimate(lambda row, n=name: np.log10(row[n]), rows, resampled, SENTENCES)
        for name in names
    }


def curve_numbers(study: SyntheticStudy) -> pd.DataFrame:
    """Figures 1 and 2 in numbers, one row a run, by names such as ``cross_entropy_0.1``.

    ``lift`` is the chosen word's probability at the end by that at the start, in its fixed context;
    ``of_p_hat`` by p̂. ``almost_frequent`` and ``frequent`` are the oscillation of these two words:
    the root mean square of the change of log q (nats) from one iteration to the next.
    ``best_change`` and ``last_change`` are of the validation perplexity; ``others_change``, with
    the weights that are best on it, of the test perplexity on all words but the chosen one.
    """
    p_hat = study.probe_lines()["p_hat"][0]
    others = study.table1()["perturbed"]["other_ppl"]
    rows = {}
    for curve in study.settings.curves:
        run = study.curve(curve)
        log_q = np.log(np.array(run.progress.probes))
        _, almost, frequent = np.sqrt(np.mean(np.diff(log_q, axis=0) ** 2, axis=0))
        perplexity = np.array([entry["perplexity"] for entry in run.history])
        rows[f"{curve.loss}_{curve.learning_rate:g}"] = {
            "lift": np.exp(log_q[-1, 0] - log_q[0, 0]),
            "of_p_hat": np.exp(log_q[-1, 0]) / p_hat,
            "almost_frequent": almost,
            "frequent": frequent,
            "best_change": perplexity.min() - perplexity[0],
            "last_change": perplexity[-1] - perplexity[0],
            "others_change": study.table1_of(run.model)["other_ppl"] - others,
        }
    return pd.DataFrame(rows).T


def of_curves(seeds: Sequence[pd.DataFrame]) -> dict[str, Estimate]:
    """Figures 1 and 2 from the :func:`curve_numbers` of each seed, as ``curves.….lift``.

    ``oscillation`` is cross-entropy's at 0.1 by that with discriminator at 0.1, and
    ``oscillation_faster`` by that with discriminator at 1, where the profile draws it;
    ``share_of_gain`` is what cross-entropy at 0.1 gains in validation perplexity by what
    fine-tuning with discriminator does, not a number where that is nothing for some seed. What
    needs a run that the profile does not draw is left out.
    """
    alone, discriminator, faster = "cross_entropy_0.1", "discriminator_0.1", "discriminator_1"
    there = set(seeds[0].index)

    def of(run: str, column: str, by: str | None = None, *, quotients: bool = True) -> Estimate:
        values = [seed.loc[run, column] / (seed.loc[by, column] if by else 1) for seed in seeds]
        return over_seeds(values, quotients=quotients)

    slower = "cross_entropy_0.01"
    found = {f"curves.{run}.lift": of(run, "lift") for run in (alone, slower) if run in there}
    if discriminator in there:
        found[f"curves.{discriminator}.of_p_hat"] = of(discriminator, "of_p_hat")
    if alone in there:
        others = over_seeds([seed.loc[alone, "others_change"] for seed in seeds])
        found[f"curves.{alone}.others_change"] = others
    if {alone, discriminator} <= there:
        share = Estimate.single(math.nan, NO_GAIN)
        if all(seed.loc[discriminator, "best_change"] < 0 for seed in seeds):
            share = of(alone, "best_change", discriminator, quotients=False)
        found[f"curves.{alone}.share_of_gain"] = share
    for name, by in (("oscillation", discriminator), ("oscillation_faster", faster)):
        if {alone, by} <= there:
            for word in ("almost_frequent", "frequent"):
                found[f"curves.{name}.{word}"] = of(alone, word, by)
    return found


# Section 4


def of_discriminator(study: TextStudy) -> dict[str, Estimate]:
    """Best validation D − log 4 (nats), by stretches of the text, and the epoch that reached it; of
    section 4.3, the part."""
    run = study.discriminator.progress
    means, resampled = means_of_stretches([study.discriminator_losses()])
    below = means[0] - math.log(4), *interval(resampled[:, 0] - math.log(4))
    length = _epochs(run, study.settings.discriminator, _parts_an_epoch(study))
    return {
        f"{study.name}.discriminator.below_log4": Estimate(*map(float, below), STRETCHED),
        f"{study.name}.discriminator.best_epoch": length,
    }


def of_finetuning(study: TextStudy) -> dict[str, Estimate]:
    """For each option of Table 2: what its own fine-tuning minimises, by stretches of the text.

    ``…_change`` is from the option's own start to its best epoch (nats). ``smaller_change`` is the
    relative change of loss or perplexity to the best of the epochs, whichever is the better: above
    0 where both increase. ``first_epoch`` is the first epoch's share of the decrease in perplexity,
    where there is any; of a training that its limit ended, it is no share of the whole.
    """
    found, training = {}, study.settings.finetuning
    for option in study.options():
        run = study.finetuned(option)
        before, after = run.history[0], run.history[1:]
        gain = before["perplexity"] - run.history[run.progress.best_epoch]["perplexity"]
        first = Estimate.single(math.nan, NO_GAIN)
        if gain > 0:
            share = (before["perplexity"] - after[0]["perplexity"]) / gain
            first = Estimate.single(share, LIMITED if _limited(run.progress, training) else ONE_RUN)
        values, resampled = _before_and_after(study, option)
        for name in ("loss", "reverse_kl"):
            at = {
                f"{option}.{name}": lambda row, n=name: row[f"after.{n}"],
                f"{option}.{name}_change": lambda row, n=name: (
                    row[f"after.{n}"] - row[f"before.{n}"]
                ),
            }
            if option == BEST:
                at[f"initial.{name}"] = lambda row, n=name: row[f"before.{n}"]
            found |= {what: stretched(of, values, resampled) for what, of in at.items()}
        found |= {
            f"{option}.smaller_change": _smaller_change(run, values, resampled),
            f"{option}.first_epoch": first,
            f"{option}.finetuning_epochs": _epochs(run.progress, training, _parts_an_epoch(study)),
        }
    return {f"{study.name}.{name}": one for name, one in found.items()}


def _before_and_after(study: TextStudy, option: str) -> tuple[dict, dict]:
    """Means over the validation text at the start of an option and with the weights that it kept:
    ``before.loss``, …, and ``(R,)`` of them each from stretches drawn with replacement."""
    arrays = {}
    for when, model in (("before", study.initial), ("after", study.finetuned(option))):
        cross_entropy, reverse_kl = study.valid_parts(model, option)
        arrays |= {f"{when}.cross_entropy": cross_entropy, f"{when}.reverse_kl": reverse_kl}
        arrays[f"{when}.loss"] = cross_entropy + reverse_kl
    means, draws = means_of_stretches(list(arrays.values()))
    return dict(zip(arrays, means, strict=True)), dict(zip(arrays, draws.T, strict=True))


def _smaller_change(run: Trained, values: dict, resampled: dict) -> Estimate:
    """Of the weights that were kept by bootstrap; of other epochs from the standard errors of their
    changes, and without an interval where an earlier version trained them."""
    before, names = run.history[0], ("loss", "perplexity")
    best, name, entry = min(
        (
            (entry[name] / before[name] - 1, name, entry)
            for entry in run.history[1:]
            for name in names
        ),
        key=lambda change: change[0],
    )
    if entry is run.history[run.progress.best_epoch]:
        return stretched(
            lambda row: (
                np.minimum(
                    row["after.loss"] / row["before.loss"],
                    np.exp(row["after.cross_entropy"] - row["before.cross_entropy"]),
                )
                - 1
            ),
            values,
            resampled,
        )
    error = entry.get("loss_error" if name == "loss" else "cross_entropy_error")
    if error is None:
        return Estimate.single(best)
    relative = error / before["loss"] if name == "loss" else error * (1 + best)
    return from_error(best, relative, STRETCHES, T_STRETCHED)


def _limited(run: Progress, training: StreamTraining) -> bool:
    return training.schedule == "linear" or not run.at_plateau(training)


def _epochs(run: Progress, training: StreamTraining, parts: int = 1) -> Estimate:
    """The best epoch, in ``parts`` each, as the length that a training needed.

    It is known where a plateau ended the training; where the limit of epochs did, from below. A
    linear schedule says nothing about it: it ends at its limit by itself.
    """
    best = run.best_epoch * parts
    if not _limited(run, training):
        return Estimate.single(best)
    linear = training.schedule == "linear"
    return Estimate.single(best, LIMITED) if linear else Estimate.at_least(best, LIMITED)


def _parts_an_epoch(study: TextStudy) -> int:
    return study.text.parts_at_once if isinstance(study, LargeStudy) else 1


def of_text(study: TextStudy) -> dict[str, Estimate]:
    """Perplexities of an experiment and what fine-tuning changes, by stretches of the text.

    ``name.model.split_ppl`` and ``name.after-before.split_ppl``: each option of Table 2, and
    cross-entropy alone where that is run, against the initial model, and against the option that
    the paper takes.
    """
    models, found = study.models(), {}
    for split in ("valid", "test"):
        rows = {name: study.token_log_probs(model)[split] for name, model in models.items()}
        values, resampled = perplexities_of_stretches(rows)
        found |= steps_of_split(study.name, f"{split}_ppl", values, resampled)
    return found
