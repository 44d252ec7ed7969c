"""What the tables of notebook 09 say, in sentences; each looks at an interval, not at a value."""

import math
from collections.abc import Iterator

import pandas as pd

from paperlib.beyond import NONE, ORACLE, TRAINED, Variant
from paperlib.beyond_comparisons import Comparisons
from paperlib.beyond_words import DAMAGE
from paperlib.estimates import CANNOT_TELL, HIGHER, LOWER, UNCHANGED, direction

NAMES = {"perturbed": "the paper's word", "several": "several words", "frequent": "a frequent word"}


def markdown(sentences: Iterator[str]) -> str:
    """The answer to a question: a list item a sentence."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def compared(row: pd.Series) -> str:
    """One row of :meth:`paperlib.beyond_comparisons.Comparisons.table`."""
    places = places_of(row["low"], row["high"], 3)
    middle, low, high = (f"{row[key]:+.{places}f}" for key in ("difference", "low", "high"))
    numbers = f"{middle} ({low} to {high})"
    if row["verdict"] == CANNOT_TELL:
        return f"the test sentences cannot tell *{row['one']}* from *{row['other']}*: {numbers}"
    if row["verdict"] == UNCHANGED:
        return f"*{row['one']}* and *{row['other']}* come to the same: {numbers}"
    return f"*{row['one']}* is {row['verdict']} than *{row['other']}*: {numbers}"


def places_of(low: float, high: float, least: int) -> int:
    """Decimal places, ``least`` at least, at which the end that is nearer to 0 is not shown as 0;
    where 0 lies between the ends, ``least``."""
    nearer = min(abs(low), abs(high))
    if low <= 0 <= high or not math.isfinite(nearer):
        return least
    return max(least, math.ceil(-math.log10(nearer)))


def share(found: dict[str, float]) -> str:
    """A share with its interval, in per cent."""
    return f"{found['recovered']:.0%} ({found['low']:.0%} to {found['high']:.0%})"


def better_discriminator(compare: Comparisons, pairs: pd.DataFrame) -> Iterator[str]:
    """Question 1, from the rows of ``pairs``."""
    rows = pairs[pairs["question"] == 1]
    for fast in (False, True):
        variants = [Variant(source, fast=fast) for source in (NONE, TRAINED, ORACLE)]
        rate = compare.study.rate(variants[0])
        found = {variant.title: compare.recovered(variant) for variant in variants}
        won = ", ".join(f"{title} {share(one)}" for title, one in found.items())
        more = [title for title, one in found.items() if one["recovered"] > 1]
        beyond = (
            f" More than 100%, with {' and '.join(more)}: other words gain too." if more else ""
        )
        yield f"Rate {rate:g}: of the perturbation's cost is won back: {won}.{beyond}"
        for _, row in rows[rows["rate"] == rate].iterrows():
            yield f"Rate {rate:g}, test perplexity: {compared(row)}."
    best = rows[rows["one"] == "oracle"]
    better = (best["verdict"] == LOWER).all()
    yield (
        "So a better discriminator gives better results, as the paper says."
        if better
        else "That a better discriminator gives better results is not seen at every rate."
    )


def where_p_hat_parts(classes: pd.DataFrame) -> Iterator[str]:
    """Question 1, where p̂ and p part, from ``p_hat_by_class``."""
    ours = classes[classes["estimate"] == "p̂ (discriminator)"]
    for _, row in ours.iterrows():
        low, high = row["change_low"], row["change_high"]
        says = {
            LOWER: "p̂ is nearer to p than q₀ is",
            HIGHER: "p̂ is farther from p than q₀ is",
            UNCHANGED: "p̂ is as far from p as q₀ is",
            CANNOT_TELL: "the test sentences cannot tell p̂'s distance from p from that of q₀",
        }[direction(low, high)]
        places = places_of(100 * low, 100 * high, 1)
        change, low, high = (f"{value:+.{places}%}" for value in (row["change"], low, high))
        yield (
            f"{row['class']}: {says}: its rms distance from p is {row['rms']:.2f} nats, which is "
            f"{change} ({low} to {high}) relative to q₀'s."
        )
    most = ours[ours["rms_high"] >= ours["rms_low"].max()]
    yield f"p̂ and p part most at: {' or '.join(most['class'])}."


def divergences(table: pd.DataFrame) -> Iterator[str]:
    """Question 2, from ``divergences``."""
    names = {"forward": "KL(p‖q)", "reverse": "KL(q‖p)"}
    for _, row in table.dropna(subset="from").iterrows():
        if all(row[f"{kind}_verdict"] == UNCHANGED for kind in names):
            yield (
                f"{row['from']} → {row['model']}: both are unchanged, for no epoch was better on "
                "validation than the start, whose weights were kept."
            )
            continue
        says = []
        for kind, name in names.items():
            verdict = row[f"{kind}_verdict"]
            if verdict == CANNOT_TELL:
                says.append(f"whether {name} is lower or higher, the test sentences cannot tell")
            else:
                says.append(f"{name} is {verdict}")
        yield f"{row['from']} → {row['model']}: {'; '.join(says)}."
    tuned = table[table["model"].str.endswith("ftd.")]
    lower = (tuned["reverse_verdict"] == LOWER).all()
    holds = "lowers" if lower else "is not seen to lower"
    left = tuned["reverse_change"] / (tuned["reverse"] - tuned["reverse_change"])
    relative = ", ".join(left.map("{:+.1%}".format))
    yield (
        f"Run as in Table 1, the method {holds} the reverse divergence of both models "
        f"(relative to what there was: {relative})."
    )


def one_sample_or_sum(
    estimates: pd.DataFrame, pairs: pd.DataFrame, seconds: dict[str, float]
) -> Iterator[str]:
    """Question 3, from ``second_terms``, the rows of ``pairs`` and the time of a step."""
    start = estimates[estimates["at"] == "start"].set_index("variant")
    for one in ("discriminator", "oracle"):
        many = f"{one}, exact sum"
        noise, bias = (
            " against ".join(f"{start.loc[name, f'gradient_{what}']:.3f}" for name in (one, many))
            for what in ("noise", "bias")
        )
        yield (
            f"{one}, one sample against the sum: at the start, the gradient's noise is {noise} and "
            f"its bias {bias}; a step with the sum takes {seconds[many] / seconds[one]:.1f} times "
            "as long."
        )
    rows = pairs[pairs["question"] == 3]
    for _, row in rows.iterrows():
        yield f"Test perplexity: {compared(row)}."
    ours, oracle, alone = rows["verdict"]
    sums = {"our discriminator": ours, "the oracle": oracle}
    says = {
        LOWER: "the exact sum is better than one sample",
        HIGHER: "the exact sum is worse than one sample",
        UNCHANGED: "the exact sum comes to the same as one sample",
        CANNOT_TELL: "the test sentences cannot tell the exact sum from one sample",
    }
    parts = [f"{says[verdict]} with {name}" for name, verdict in sums.items()]
    if ours == oracle:
        parts = [f"{says[ours]} with both"]
    beside = {
        LOWER: "it gains more than cross-entropy alone",
        HIGHER: "it gains less than cross-entropy alone",
        UNCHANGED: "it gains as much as cross-entropy alone",
        CANNOT_TELL: "they cannot tell it from cross-entropy alone",
    }
    if alone == CANNOT_TELL and CANNOT_TELL not in (ours, oracle):
        beside[alone] = "the test sentences cannot tell it from cross-entropy alone"
    yield f"So {' and '.join(parts)}; with our discriminator {beside[alone]}."


def changed_terms(terms: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[str]:
    """Question 4, from ``second_terms`` and the rows of ``pairs``."""
    noise = terms[terms["at"] == "start"].set_index("variant")["gradient_noise"]
    rows = pairs[pairs["question"] == 4]
    for _, row in rows.iterrows():
        times = noise[row["one"]] / noise[row["other"]]
        yield f"Test perplexity: {compared(row)}; noise of the gradient × {times:.2f}."
    better = rows.loc[rows["verdict"] == LOWER, "one"]
    yield f"Better than the paper's term: {'; '.join(better) or 'none'}."


def repairs(compare: Comparisons, pairs: pd.DataFrame) -> Iterator[str]:
    """Question 5, from the rows of ``pairs``."""
    rows = pairs[pairs["question"] == 5].set_index("of")
    variants = iter(compare.study.repair_variants())
    with_discriminator = {}
    for ours, alone in zip(variants, variants, strict=True):
        with_discriminator[ours.of] = ours
        yield (
            f"{NAMES[ours.of]}: with discriminator {share(compare.recovered(ours))} of the cost is "
            f"won back, with cross-entropy alone {share(compare.recovered(alone))}. Test "
            f"perplexity: {compared(rows.loc[ours.of])}."
        )
    for of in ("several", "frequent"):
        found = compare.recovered(with_discriminator[of], with_discriminator["perturbed"])
        repaired, papers = f"the repair of {NAMES[of]}", "that of the paper's word"
        says = {
            HIGHER: f"{repaired} works better than {papers}",
            LOWER: f"{repaired} works worse than {papers}",
            UNCHANGED: f"{repaired} works exactly like {papers}",
            CANNOT_TELL: f"the test sentences cannot tell {repaired} from {papers}",
        }[direction(found["low"], found["high"])]
        more, low, high = (100 * found[key] for key in ("recovered", "low", "high"))
        yield (
            f"{says[0].upper()}{says[1:]}: the shares won back differ by {more:+.0f} percentage "
            f"points ({low:+.0f} to {high:+.0f})."
        )


def who_gains(bins: pd.DataFrame, groups: pd.DataFrame) -> Iterator[str]:
    """Question 6: the paper's sentence, judged by the groups of words of each model."""
    for panel, part in bins.groupby("model", sort=False):
        gain = ", ".join(part.loc[part["low"] > 0, "bin"]) or "none"
        lose = ", ".join(part.loc[part["high"] < 0, "bin"]) or "none"
        yield f"{panel}: ranks that gain: {gain}; that lose: {lose}. {_judged(groups, panel)}"
    held = [_holds(groups, panel) for panel in dict.fromkeys(groups["model"])]
    yield (
        f"The paper's sentence, that rare words' probabilities increase without significant damage "
        f"to frequent words, holds for {sum(held)} of {len(held)} models here."
    )


def _judged(groups: pd.DataFrame, panel: str) -> str:
    rows = groups[groups["model"] == panel].set_index("words")
    parts = []
    for name in ("rare", "frequent"):
        row = rows.loc[name]
        if pd.isna(row["mean"]):
            parts.append(f"there are no {name} words")
            continue
        moved = {
            HIGHER: "gain",
            LOWER: "lose",
            UNCHANGED: "do not move",
            CANNOT_TELL: "gain or lose, which the test text cannot tell",
        }[direction(row["low"], row["high"])]
        numbers = f"{row['mean']:+.5f} ({row['low']:+.5f} to {row['high']:+.5f}) nats"
        parts.append(f"{name} words {moved}: {numbers}")
    return f"All together, {'; '.join(parts)}."


def _holds(groups: pd.DataFrame, panel: str) -> bool:
    rows = groups[groups["model"] == panel].set_index("words")
    return bool(rows.loc["rare", "low"] > 0 and rows.loc["frequent", "low"] > -DAMAGE)
