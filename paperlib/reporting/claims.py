"""The ledger: what the paper says, what was measured, and the verdict that follows from a rule.

``paperlib/claims.toml`` declares the claims; the numbers come from the notebooks' measures
(:mod:`paperlib.reporting.measures`). Every rule comes down to two bands of values, one for
*reproduced* and a wider one for *partly*, and looks at the interval, not at the value. The verdict
is *reproduced* if the interval lies in the inner band, *not reproduced* if it lies outside of the
outer one, and *partly* otherwise; a number without an interval is *partly* at best, and so is one
training where trainings differ. Each verdict has its reason. Controls of ours stand among the
claims, labelled, and are counted apart.
"""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

import pandas as pd
from pydantic import ValidationError, model_validator

from paperlib import notebooks
from paperlib.estimates import LIMITED, NO_GAIN, ONE_RUN
from paperlib.files import write_text
from paperlib.settings import Settings, SettingsError
from paperlib.validated import first_fault

CLAIMS = Path(__file__).parents[1] / "claims.toml"

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_RUN = VERDICTS = (
    "reproduced",
    "partly",
    "not reproduced",
    "not run at this scale",
)

Band = tuple[float, float]

COMPARABLE = 0.1
"""Relative distance up to which a perplexity to start from is comparable with the paper's."""

NOT_MEASURED = "nothing was run that measures it"
NO_NUMBER = "what it speaks of did not occur in this run, so there is no number"
OTHER_SIZE = "it speaks of the paper's size, and this run has another"
WITHIN = "the whole interval is in the rule's band"
ONE_TRAINING = "of one training, and another one may come out the other way"
UNMOVED = "fine-tuning kept the weights it started from (best epoch 0)"
CONTROL = "Our control"


class Claim(Settings):
    """One entry of ``claims.toml``; what the fields mean is said there."""

    place: str
    says: str
    rule: Literal["near", "size", "sign", "above", "below", "covers"]
    measure: str | None = None
    paper: float | None = None
    tolerance: float | None = None
    partly: float | None = None
    limit: float | None = None
    least: float = 0
    unit: str = ""
    paper_size: bool = False
    start: str | None = None
    paper_start: float | None = None
    cell: str | None = None
    note: str = ""
    constructed: bool = False
    varies: bool = False
    rests_on: str | None = None
    control: bool = False

    @model_validator(mode="after")
    def _rule_has_what_it_needs(self) -> Self:
        needs = {"above": ["limit"], "below": ["limit"]}
        needs |= {rule: ["paper", "tolerance"] for rule in ("near", "covers")}
        missing = [n for n in needs.get(self.rule, ["paper"]) if getattr(self, n) is None]
        if missing:
            raise ValueError(f"the rule {self.rule!r} needs {' and '.join(missing)}")
        if (self.start is None) != (self.paper_start is None):
            raise ValueError("start and paper_start go together")
        if self.measure and not self.cell:
            raise ValueError("a claim that is measured needs the cell that shows it")
        return self

    def bands(self) -> tuple[Band, Band]:
        """The values that are *reproduced*, and the wider band of those that are so *partly*."""
        paper, partly, infinity = self.paper, self.partly, math.inf
        if self.rule in ("near", "covers"):
            wide = 3 * self.tolerance if partly is None else partly
            inner = (paper - self.tolerance, paper + self.tolerance)
            return inner, (paper - wide, paper + wide)
        if self.rule in ("size", "sign"):
            least = max(self.least, math.ulp(0.0))  # no change at all has no sign
            same = (least, infinity) if paper > 0 else (-infinity, -least)
            return (same if self.rule == "sign" else tuple(sorted((paper / 2, paper * 2)))), same
        wide = self.limit if partly is None else partly
        if self.rule == "above":
            return (self.limit, infinity), (wide, infinity)
        return (-infinity, self.limit), (-infinity, wide)

    def rule_in_words(self) -> str:
        """The rule as a reader sees it."""
        paper = None if self.paper is None else f"{self.paper:g}"
        inner, outer = self.bands()
        if self.rule == "near" and self.tolerance <= 1e-9:
            return f"exactly {paper}"
        also = "" if inner == outer else f"; partly: within {outer[0]:.4g} … {outer[1]:.4g}"
        rule = {
            "near": f"within {self.tolerance or 0:g} of {paper}{also}",
            "size": f"the sign of {paper} and between half and twice its size; partly: the sign, "
            "unless the interval has 0 but not half of the paper's number",
            "sign": f"the sign of {paper}",
            "above": f"above {inner[0]:g}" + ("" if inner == outer else f"; partly: {outer[0]:g}"),
            "below": f"below {inner[1]:g}" + ("" if inner == outer else f"; partly: {outer[1]:g}"),
            "covers": f"the interval has {paper} in it, at most {self.tolerance or 0:g} from its "
            "middle to its ends; partly: too wide, or no farther off than that",
        }[self.rule]
        if self.start:
            rule += f"; only where fine-tuning starts within {COMPARABLE:.0%} of {self.paper_start}"
        return rule

    def verdict(self, value: float, low: float, high: float, basis: str = "") -> tuple[str, str]:
        """*reproduced*, *partly* or *not reproduced* for a measure and its interval; and why.

        ``basis`` says what the interval is over; of one run without an interval, ``low`` and
        ``high`` are not looked at. One that a limit ended is judged only where it is refuted.
        """
        if basis == ONE_RUN:
            found, why = self._verdict(value, value, value)
            return (PARTLY, ONE_RUN) if found == REPRODUCED else (found, f"{why}; {ONE_RUN}")
        found, why = self._verdict(value, low, high)
        if basis == LIMITED:
            return found, f"{why}, already when {LIMITED.removeprefix('its training ')}"
        inner = self.bands()[0]
        if not why and 2 * (high - low) < inner[1] - inner[0] < math.inf:
            why = "at the edge of the rule's band"
        return found, why or f"the interval is too wide to tell: {basis}"

    def refuted_from(self, low: float) -> bool:
        """Whether any number from ``low`` on is *not reproduced*."""
        return self.bands()[1][1] < low

    def _verdict(self, value: float, low: float, high: float) -> tuple[str, str]:
        """The reason is empty where the interval says neither."""
        if self.rule == "covers":
            return self._covered(value, low, high)
        inner, outer = self.bands()
        if inner[0] <= low and high <= inner[1]:
            return REPRODUCED, WITHIN
        if self.rule in ("size", "sign"):
            sign = 1 if self.paper > 0 else -1
            return self._same_direction(*sorted((sign * low, sign * high)))
        than = "than the paper's" if self.rule == "near" else "than the rule asks"
        out = NOT_REPRODUCED if high < outer[0] or low > outer[1] else PARTLY
        if high < inner[0]:
            return out, f"lower {than}"
        return (out, f"higher {than}") if low > inner[1] else (PARTLY, "")

    def _same_direction(self, low: float, high: float) -> tuple[str, str]:
        """For *size* and *sign*, of an interval that is positive where it has the paper's sign."""
        size, least = abs(self.paper), max(self.least, math.ulp(0.0))
        if high < least:
            either = "other sign" if high < 0 else "no change, or the other sign"
            return NOT_REPRODUCED, "no change" if low > -least else either
        if self.rule == "sign":
            return PARTLY, ""
        if high < size / 2:
            if low <= 0:
                return NOT_REPRODUCED, "less than half of the paper's, or none, or the other sign"
            return PARTLY, "smaller than the paper's"
        return PARTLY, "larger than the paper's" if low > 2 * size else ""

    def _covered(self, value: float, low: float, high: float) -> tuple[str, str]:
        wide = (high - low) / 2 > self.tolerance
        if low <= self.paper <= high:
            return (PARTLY, "") if wide else (REPRODUCED, "the interval has the paper's number")
        out = PARTLY if abs(value - self.paper) <= self.tolerance else NOT_REPRODUCED
        return out, f"{'lower' if high < self.paper else 'higher'} than the paper's"


def declared(path: Path = CLAIMS) -> dict[str, Claim]:
    """All claims by name, in the paper's order.

    Raises :class:`~paperlib.settings.SettingsError` that names the entry and what is wrong with it.
    """
    found = {}
    for group in tomllib.loads(path.read_text(encoding="utf-8"))["groups"]:
        for own in group.pop("claims"):
            name = own.pop("name")
            try:
                claim = Claim.model_validate(group | own)
            except ValidationError as error:
                raise SettingsError(f"{path.name}: {name}: {first_fault(error)}") from None
            if name in found:
                raise SettingsError(f"{path.name}: two claims are called {name}")
            if claim.rests_on and claim.rests_on not in found:
                raise SettingsError(f"{path.name}: {name}: no claim before it is {claim.rests_on}")
            found[name] = claim
    return found


def ledger(claims: Mapping[str, Claim], measures: Mapping[str, dict]) -> list[dict]:
    """One entry a claim: the claim, what was measured, the verdict and its reason, and the cell.

    ``measures`` is by name, each with the fields of :class:`~paperlib.estimates.Estimate` and
    ``paper_size``. A number that is not there, such as the end of a missing interval, is None, and
    so is an end that is infinite.
    """
    entries = []
    for name, claim in claims.items():
        copied = {"place", "says", "note", "paper", "unit", "measure", "constructed", "control"}
        entry = {"claim": name} | claim.model_dump(include=copied)
        entry |= {"rule": claim.rule_in_words(), "verdict": NOT_RUN}
        found = measures.get(claim.measure)
        if reason := _why_not_run(claim, found, measures):
            entry["reason"] = reason
        else:
            numbers = {key: float(found[key]) for key in ("value", "low", "high")}
            verdict, reason = claim.verdict(**numbers, basis=found["basis"])
            if found["basis"] != ONE_RUN and "-" in claim.measure and not any(numbers.values()):
                reason = UNMOVED
            if claim.varies and found.get("seeds", 1) == 1:
                reason = f"{ONE_TRAINING}; by its own interval {verdict}"
                verdict = NOT_REPRODUCED if verdict == NOT_REPRODUCED else PARTLY
            premise = next((one for one in entries if one["claim"] == claim.rests_on), None)
            if premise and verdict == REPRODUCED != premise["verdict"]:
                verdict = PARTLY
                reason = f"{reason}; but its premise is {premise['verdict']}: {premise['says']}"
            numbers |= {"sd": float(found.get("sd", math.nan))}
            numbers = {key: n if math.isfinite(n) else None for key, n in numbers.items()}
            notebook, cell = claim.cell.split("#")
            shown = {"notebook": notebooks.find(notebook).name, "cell": cell}
            decided = {"verdict": verdict, "reason": reason}
            runs = {"basis": found["basis"], "seeds": found.get("seeds")}
            entry |= numbers | runs | decided | shown
        entries.append(entry)
    return entries


def _why_not_run(claim: Claim, found: dict | None, measures: Mapping[str, dict]) -> str:
    """Why this claim is *not run at this scale*; empty where it is judged."""
    if claim.measure is None and claim.note:
        return claim.note
    if found is None:
        return NOT_MEASURED
    if not math.isfinite(found["value"]):
        return NO_GAIN if found["basis"] == NO_GAIN else NO_NUMBER
    if found["basis"] == LIMITED and not claim.refuted_from(found["low"]):
        return LIMITED
    if claim.paper_size and not found["paper_size"]:
        return OTHER_SIZE
    if claim.start:
        ours = measures[claim.start]["value"] if claim.start in measures else math.nan
        if not abs(ours / claim.paper_start - 1) <= COMPARABLE:
            return (
                f"fine-tuning starts at a perplexity of {ours:.4g} here, at {claim.paper_start} "
                "in the paper"
            )
    return ""


def save_ledger(folder: Path, profile: str, commit: str, entries: list[dict]) -> None:
    """Write ``claims.json``: profile, commit, numbers of claims and of controls by verdict, and all
    entries."""
    record = {"profile": profile, "commit": commit, "verdicts": count(entries)}
    record |= {"controls": count(entries, controls=True), "claims": entries}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / "claims.json", text + "\n")


def count(entries: list[dict], *, controls: bool = False) -> dict[str, int]:
    """Number of the paper's claims by verdict, or of our ``controls``."""
    verdicts = [entry["verdict"] for entry in entries if entry["control"] == controls]
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def for_people(entries: list[dict]) -> pd.DataFrame:
    """The ledger as a table."""
    return pd.DataFrame(
        {
            "Place": entry["place"],
            "The paper says": statement(entry),
            "Paper": "" if entry["paper"] is None else significant(entry["paper"]),
            "Ours": measured(entry),
            "Seeds": str(entry.get("seeds") or ""),
            "sd": significant(entry["sd"]) if entry.get("sd") is not None else "",
            "Verdict": entry["verdict"],
            "Reason": entry["reason"],
            "Shown in": f"{entry['notebook']}, cell {entry['cell']}" if "cell" in entry else "",
        }
        for entry in entries
    )


def statement(entry: dict) -> str:
    """What the paper says; of a control, that it is ours."""
    return f"{CONTROL}: {entry['says']}" if entry["control"] else entry["says"]


def measured(entry: dict) -> str:
    """Value and interval of an entry in a few digits, with the unit; nothing if it was not run."""
    if "value" not in entry:
        return ""
    unit = f" {entry['unit']}" if entry["unit"] else ""
    text = f"{significant(entry['value'])}{unit}"
    if entry["basis"] == LIMITED:
        return f"at least {text}"
    if None in (entry["low"], entry["high"]) or entry["low"] == entry["high"]:
        return text
    return f"{text} ({significant(entry['low'])} to {significant(entry['high'])})"


def significant(value: float) -> str:
    """Four significant digits, as in *82.36*, *−0.1234* and *3.1e-16*."""
    plain = value == 0 or 1e-4 <= abs(value) < 1e5
    return f"{value:.4g}".replace("-", "−") if plain else f"{value:.1e}"
