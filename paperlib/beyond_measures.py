"""What notebook 09 measures on the trainings of :mod:`paperlib.beyond`, one table a question.

Log-probabilities are in nats, per token. N sentences, T words a sentence, V words.
"""

import copy
import time
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from paperlib.beyond import NONE, ORACLE, TRAINED, BeyondStudy, Variant
from paperlib.beyond_comparisons import Comparisons
from paperlib.divergences import kl, second_term_moments
from paperlib.estimates import direction, interval, interval_of_mean, resampled_sums
from paperlib.evaluation import perplexity, table1_row
from paperlib.losses import log_p_hat
from paperlib.models.readings import log_q
from paperlib.settings import SecondTerm
from paperlib.synthetic import MODELS
from paperlib.tasks import Split
from paperlib.truth import TrueModel

BATCH = 50
"""Sentences whose distributions over the vocabulary are held at once."""


class ExactContexts:
    """The first test sentences, and all that is an exact sum over the vocabulary in them."""

    def __init__(self, study: BeyondStudy):
        self.study = study
        ids = study.test[: study.beyond.sentences]
        self.words = torch.from_numpy(np.ascontiguousarray(ids)).to(study.device)
        self.truth = TrueModel(study.language, self.words)

    @torch.no_grad()
    def each(self, read: Callable[[Tensor], Tensor | dict[str, Tensor]]) -> dict[str, np.ndarray]:
        """``read(words)`` for ``(B, T)`` sentences at a time; joined, as float64 on the CPU."""
        parts = [read(words) for words in self.words.split(BATCH)]
        return {
            name: torch.cat([part[name] for part in parts]).double().cpu().numpy()
            for name in parts[0]
        }

    def log_p_hat(self, words: Tensor, variant: Variant) -> Tensor:
        """log p̂ of every word, ``(B, T, V)``, as fine-tuning in this way has it."""
        if variant.p_hat == ORACLE:
            return self.truth(words)
        log_q0 = log_q(self.study.start(variant.of)(words))
        discriminator = self.study.p_hat_discriminator(variant)
        return log_q0 if discriminator is None else log_p_hat(log_q0, discriminator.model(words))

    def divergences(self, model: nn.Module) -> dict[str, np.ndarray]:
        """KL(p‖q) and KL(q‖p), ``(N, T)`` nats, as ``forward`` and ``reverse``."""

        def read(words: Tensor) -> dict[str, Tensor]:
            q, p = log_q(model(words)), self.truth(words)
            return {"forward": kl(p, q), "reverse": kl(q, p)}

        return self.each(read)

    def moments(self, variant: Variant, model: nn.Module) -> dict[str, float]:
        """:func:`paperlib.divergences.second_term_moments` of a model, means over contexts.

        ``variance`` and the ``gradient_…`` are returned as roots of their means: ``sd``,
        ``gradient_bias``, ``gradient_signal`` and ``gradient_noise``.
        """
        term = SecondTerm(weight=0) if variant.p_hat == NONE else variant.term
        means = self.each(
            lambda words: second_term_moments(
                log_q(model(words)), self.truth(words), self.log_p_hat(words, variant), term
            )
        )
        means = {name: float(values.mean()) for name, values in means.items()}
        roots = {name: means.pop(name) ** 0.5 for name in list(means) if "gradient" in name}
        sd = means.pop("variance") ** 0.5
        return means | {"bias": means["expected"] - means["sum"], "sd": sd} | roots


def word_probabilities(
    exact: ExactContexts, variant: Variant, models: dict[str, nn.Module]
) -> dict[str, float]:
    """Probability of the perturbed words under q_0, p̂, the given ``models`` and p.

    Each is a mean over the contexts and, of several words, the geometric mean over words: these
    are orders of magnitude.
    """
    start, words = exact.study.start(variant.of), exact.study.perturbed_words(variant.of)

    def read(ids: Tensor) -> dict[str, Tensor]:
        everywhere = {"q0": log_q(start(ids)), "p_hat": exact.log_p_hat(ids, variant)}
        everywhere |= {name: log_q(model(ids)) for name, model in models.items()}
        everywhere["p"] = exact.truth(ids)
        return {name: values[..., words].double() for name, values in everywhere.items()}

    return {
        name: float(np.exp(np.log(np.exp(values).mean(axis=(0, 1))).mean()))
        for name, values in exact.each(read).items()
    }


# Question 1


def discriminators(exact: ExactContexts) -> pd.DataFrame:
    """Table 1's columns for the perturbed model and each way to get p̂, at both rates.

    ``p_hat`` and ``chosen`` are the chosen word's mean probability under p̂ and under the model;
    ``best_epoch`` is the epoch whose weights were best on validation and are kept, 0 being those
    before the first step. ``rate``, ``p_hat`` and ``best_epoch`` are empty where there is none.
    """
    study = exact.study

    def row(name: str, rate: float | None, log_probs: np.ndarray, chosen: dict) -> dict:
        measured = table1_row(log_probs, study.test_log_p, study.test, study.classes, study.chosen)
        return {"fine-tuned with": name, "rate": rate} | measured | chosen

    before = word_probabilities(exact, Variant(), {})
    rows = [
        row("(the true distribution)", None, study.test_log_p, {"chosen": before["p"]}),
        row(
            "(the perturbed model)",
            None,
            study.test_log_q("perturbed"),
            {"chosen": before["q0"]},
        ),
    ]
    for variant in study.discriminator_variants():
        tuned = study.tuned(variant)
        model = tuned.model
        found = word_probabilities(exact, variant, {"chosen": model})
        chosen = {"chosen": found["chosen"], "best_epoch": tuned.progress.best_epoch}
        if variant.p_hat != NONE:
            chosen["p_hat"] = found["p_hat"]
        log_probs = study.test_log_q(variant)
        rows.append(row(variant.title, study.rate(variant), log_probs, chosen))
    return pd.DataFrame(rows)


def _classes(study: BeyondStudy) -> dict[str, np.ndarray]:
    """Word ids by frequency class; the chosen word is a class of its own."""
    classes = study.classes
    other = np.setdiff1d(classes.rare, classes.almost_frequent)
    found = {"frequent": classes.frequent, "almost frequent": classes.almost_frequent}
    found |= {"other": other}
    found = {name: words[words != study.chosen] for name, words in found.items()}
    return found | {"chosen word": np.array([study.chosen])}


def _sources(study: BeyondStudy) -> list[Variant]:
    """q_0 itself, and p̂ of each discriminator of the perturbed model."""
    return [Variant(NONE), *(Variant(epochs) for epochs in study.beyond.early), Variant(TRAINED)]


def p_hat_by_class(exact: ExactContexts) -> pd.DataFrame:
    """Where q_0 and p̂ part from p: log p̂ − log p by frequency class.

    Over all contexts and all words of the class, each counted the same: ``mean``, ``sd`` and
    ``rms`` (nats), and ``change``, the relative change of the rms from q_0 to p̂. ``…_low`` and
    ``…_high`` are 95 % bootstrap intervals over sentences, paired for the change.
    """
    rows, start, classes = [], {}, _classes(exact.study)
    for variant in _sources(exact.study):

        def read(ids: Tensor, variant: Variant = variant) -> dict[str, Tensor]:
            log_ratio = exact.log_p_hat(ids, variant) - exact.truth(ids)
            return {name: log_ratio[..., words] for name, words in classes.items()}

        source = "q₀" if variant.p_hat == NONE else f"p̂ ({variant.title})"
        for name, values in exact.each(read).items():
            row = {"estimate": source, "class": name}
            row |= {"mean": float(values.mean()), "sd": float(values.std())}
            squares = (values**2).mean(axis=(1, 2))
            row |= _rms_and_change(exact.study, squares, start.setdefault(name, squares))
            rows.append(row)
    return pd.DataFrame(rows)


def _rms_and_change(study: BeyondStudy, squares: np.ndarray, start: np.ndarray) -> dict[str, float]:
    """From mean squares of sentences, ``(N,)``: ``rms``, and its ``change`` from ``start``'s."""
    sums = np.stack([squares, start], axis=-1)
    drawn = resampled_sums(sums, study.beyond.resamples, study.seed)
    found = {}
    for totals in (sums.sum(axis=0), drawn):
        rms, before = np.moveaxis(np.sqrt(totals / len(sums)), -1, 0)
        for name, values in {"rms": rms, "change": rms / before - 1}.items():
            if name in found:
                found[f"{name}_low"], found[f"{name}_high"] = interval(values)
            else:
                found[name] = float(values)
    return found


def scatter(exact: ExactContexts, points: int = 400, seed: int = 0) -> dict[str, dict[str, list]]:
    """log p, log q_0 and log p̂ by class, for ``points`` random pairs of context and word each."""
    study, rng = exact.study, np.random.default_rng(seed)
    values = {"p": exact.truth, "q0": lambda ids: exact.log_p_hat(ids, Variant(NONE))}
    values["p_hat"] = lambda ids: exact.log_p_hat(ids, Variant(TRAINED))
    shape = tuple(exact.words.shape)
    found = {}
    for name, words in _classes(study).items():
        pairs = rng.integers(np.prod(shape), size=points), rng.choice(words, size=points)
        at = np.unravel_index(pairs[0], shape)
        found[name] = {}
        for kind, read in values.items():
            rows = torch.from_numpy(np.ascontiguousarray(at[0])).to(exact.words.device)
            with torch.no_grad():
                picked = torch.cat([read(ids) for ids in exact.words[rows].split(BATCH)])
            log_probs = picked[np.arange(points), at[1], pairs[1]].double().cpu()
            found[name][kind] = log_probs.tolist()
    return found


# Question 2


def divergences(exact: ExactContexts) -> pd.DataFrame:
    """KL(p‖q) and KL(q‖p), exact sums, before and after fine-tuning.

    ``…_change`` is what fine-tuning adds, in nats a token, with a 95 % bootstrap interval over
    sentences (``…_low``, ``…_high``); ``…_verdict`` reads it with
    :func:`~paperlib.estimates.direction`.
    """
    study = exact.study
    pairs = [(of, f"{of} model ftd.", study.finetuned(of).model) for of in MODELS]
    pairs += [
        (variant.of, f"{variant.title}, rate {study.rate(variant):g}", study.tuned(variant).model)
        for variant in study.discriminator_variants()
        if variant.p_hat in (NONE, TRAINED, ORACLE)
    ]
    rows, before = [], {}
    for of, name, model in pairs:
        if of not in before:
            before[of] = exact.divergences(study.start(of))
            rows.append(
                {"model": f"{of} model"} | {k: float(v.mean()) for k, v in before[of].items()}
            )
        after = exact.divergences(model)
        row = {"model": name, "from": of} | {k: float(v.mean()) for k, v in after.items()}
        for kind, values in after.items():
            change = (values - before[of][kind]).mean(axis=1)
            mean, low, high = interval_of_mean(change, study.beyond.resamples, study.seed)
            row |= {f"{kind}_change": mean, f"{kind}_low": low, f"{kind}_high": high}
            row[f"{kind}_verdict"] = direction(low, high)
        rows.append(row)
    return pd.DataFrame(rows)


# Questions 3 and 4


def second_terms(exact: ExactContexts, variants: Sequence[Variant]) -> pd.DataFrame:
    """Bias and noise of each variant's loss, at the start and after, and what it comes to.

    Two rows a variant: ``at`` is *start* (q_θ = q_0) or *end* (its own fine-tuned model). See
    :meth:`ExactContexts.moments`; ``sd`` is that of one token's second term, gradients are those of
    the whole loss by the logits.
    """
    study = exact.study
    rows = []
    for variant in variants:
        tuned = study.tuned(variant)
        kept = (
            ("start", 0, study.start(variant.of), variant.of),
            ("end", tuned.progress.best_epoch, tuned.model, variant),
        )
        for at, epoch, model, name in kept:
            row = {"variant": variant.title, "at": at, "best_epoch": epoch}
            row["test_ppl"] = perplexity(study.test_log_q(name))
            row["chosen"] = word_probabilities(exact, variant, {"model": model})["model"]
            rows.append(row | exact.moments(variant, model))
    return pd.DataFrame(rows)


def seconds_per_step(
    study: BeyondStudy, variants: Sequence[Variant], steps: int = 5
) -> dict[str, float]:
    """Median time of forward and backward pass of a batch, by variant; in turns, so that whatever
    else the machine does meets all alike."""
    size = study.settings.finetuning.batch_size
    some = Split(study.split.train[:size], study.split.valid[:1])
    tasks = {}
    for variant in variants:
        model = copy.deepcopy(study.start(variant.of))
        tasks[variant.title] = study.task(variant, model, some)
    taken = {title: [] for title in tasks}
    for _ in range(steps + 1):  # the first one warms up
        for title, task in tasks.items():
            started = time.perf_counter()
            task.backward(task.batches(0, size)[0])["loss"].item()
            taken[title].append(time.perf_counter() - started)
    return {title: float(np.median(times[1:])) for title, times in taken.items()}


# Question 5


def repair(exact: ExactContexts) -> pd.DataFrame:
    """Fine-tuning of other perturbations: perplexities, and the perturbed words' probabilities.

    A row each with discriminator and with cross-entropy alone. ``lost`` is the perturbation's cost
    (log perplexity on the test sentences, nats); ``recovered`` is the share of it that fine-tuning
    wins back, with a 95 % bootstrap interval over sentences. ``moved`` is how far of the way from
    q_0 to p the words' probability comes, in decades.
    """
    study, compare = exact.study, Comparisons(exact.study)
    rows = []
    for variant in study.repair_variants():
        tuned = study.tuned(variant).model
        words = study.perturbed_words(variant.of)
        initial, before, after = (
            compare.perplexity(one) for one in ("initial", variant.of, variant)
        )
        found = word_probabilities(exact, variant, {"finetuned": tuned})
        moved = np.log(found["finetuned"] / found["q0"]) / np.log(found["p"] / found["q0"])
        if variant.p_hat == NONE:
            del found["p_hat"]
        rows.append(
            {
                "perturbed": variant.of,
                "fine-tuned with": variant.title,
                "words": len(words),
                "frequency": study.classes.counts[words].sum() / study.classes.counts.sum(),
                "before": before,
                "after": after,
                "lost": np.log(before / initial),
            }
            | compare.recovered(variant)
            | found
            | {"moved": moved}
        )
    return pd.DataFrame(rows)
