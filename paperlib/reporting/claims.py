"""The ledger: what the paper says, what was measured, and the verdict that follows from a rule.

``paperlib/claims.toml`` declares the claims; the numbers come from the notebooks' measures
(:mod:`paperlib.reporting.measures`). Every rule comes down to two bands of values, one for
*reproduced* and a wider one for *partly*, and looks at the interval, not at the value. The verdict
is *reproduced* if the interval lies in the inner band, *not reproduced* if it lies outside of the
outer one, and *partly* otherwise.
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
from paperlib.settings import Settings, SettingsError

CLAIMS = Path(__file__).parents[1] / "claims.toml"

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_RUN = VERDICTS = (
    "reproduced",
    "partly",
    "not reproduced",
    "not run at this scale",
)

Band = tuple[float, float]


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
    cell: str | None = None

    @model_validator(mode="after")
    def _rule_has_what_it_needs(self) -> Self:
        needs = {"near": "tolerance", "above": "limit", "below": "limit"}.get(self.rule, "paper")
        missing = [name for name in {needs, "paper"} if getattr(self, name) is None]
        if needs in missing or (self.rule == "near" and missing):
            raise ValueError(f"the rule {self.rule!r} needs {' and '.join(sorted(missing))}")
        if self.measure and not self.cell:
            raise ValueError("a claim that is measured needs the cell that shows it")
        return self

    def bands(self) -> tuple[Band, Band]:
        """The values that are *reproduced*, and the wider band of those that are so *partly*."""
        paper, partly, infinity = self.paper, self.partly, math.inf
        if self.rule == "near":
            wide = 3 * self.tolerance if partly is None else partly
            inner = (paper - self.tolerance, paper + self.tolerance)
            return inner, (paper - wide, paper + wide)
        if self.rule in ("size", "sign"):
            least = max(self.least, math.ulp(0.0))  # no change at all has no sign
            same = (least, infinity) if paper > 0 else (-infinity, -least)
            return (same if self.rule == "sign" else tuple(sorted((paper / 2, paper * 2)))), same
        if self.rule == "covers":
            return (paper, paper), (paper, paper)
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
        return {
            "near": f"within {self.tolerance or 0:g} of {paper}{also}",
            "size": f"the sign of {paper} and between half and twice its size; partly: the sign",
            "sign": f"the sign of {paper}",
            "above": f"above {inner[0]:g}" + ("" if inner == outer else f"; partly: {outer[0]:g}"),
            "below": f"below {inner[1]:g}" + ("" if inner == outer else f"; partly: {outer[1]:g}"),
            "covers": f"the interval has {paper} in it; partly: were it twice as wide",
        }[self.rule]

    def verdict(self, value: float, low: float, high: float) -> str:
        """*reproduced*, *partly* or *not reproduced* for a measure and its interval."""
        if self.rule == "covers":
            wide = (2 * low - value, 2 * high - value)
            if low <= self.paper <= high:
                return REPRODUCED
            return PARTLY if wide[0] <= self.paper <= wide[1] else NOT_REPRODUCED
        inner, outer = self.bands()
        if inner[0] <= low and high <= inner[1]:
            return REPRODUCED
        return NOT_REPRODUCED if high < outer[0] or low > outer[1] else PARTLY


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
                first = error.errors()[0]
                where = ".".join([name, *map(str, first["loc"])])
                raise SettingsError(f"{path.name}: {where}: {first['msg']}") from None
            if name in found:
                raise SettingsError(f"{path.name}: two claims are called {name}")
            found[name] = claim
    return found


def ledger(claims: Mapping[str, Claim], measures: Mapping[str, dict]) -> list[dict]:
    """One entry a claim: the claim, what was measured, the verdict, and where it is shown.

    ``measures`` is by name, each with ``value``, ``low``, ``high``, ``basis`` and ``paper_size``. A
    claim without its measure, or one that speaks of the paper's size where the run has another, is
    *not run at this scale*.
    """
    entries = []
    for name, claim in claims.items():
        entry = claim.model_dump(include={"place", "says", "paper", "unit", "measure"})
        entry = {"claim": name} | entry | {"rule": claim.rule_in_words(), "verdict": NOT_RUN}
        found = measures.get(claim.measure)
        if found is None or math.isnan(found["value"]):
            entry["reason"] = "nothing was run that measures it"
        elif claim.paper_size and not found["paper_size"]:
            entry["reason"] = "it speaks of the paper's size, and this run has another"
        else:
            numbers = {key: float(found[key]) for key in ("value", "low", "high")}
            verdict = claim.verdict(**numbers)
            notebook, cell = claim.cell.split("#")
            shown = {"notebook": notebooks.find(notebook).name, "cell": cell}
            entry |= numbers | {"basis": found["basis"], "verdict": verdict} | shown
        entries.append(entry)
    return entries


def save_ledger(folder: Path, profile: str, commit: str, entries: list[dict]) -> None:
    """Write ``claims.json``: profile, commit, number of claims by verdict, and all entries."""
    record = {"profile": profile, "commit": commit, "verdicts": count(entries), "claims": entries}
    text = json.dumps(record, indent=1, ensure_ascii=False)
    (folder / "claims.json").write_text(text + "\n", encoding="utf-8")


def count(entries: list[dict]) -> dict[str, int]:
    """Number of entries by verdict."""
    return {verdict: sum(entry["verdict"] == verdict for entry in entries) for verdict in VERDICTS}


def for_people(entries: list[dict]) -> pd.DataFrame:
    """The ledger as a table."""
    return pd.DataFrame(
        {
            "Place": entry["place"],
            "The paper says": entry["says"],
            "Paper": "" if entry["paper"] is None else significant(entry["paper"]),
            "Ours": measured(entry),
            "Verdict": entry["verdict"],
            "Shown in": f"{entry['notebook']}, cell {entry['cell']}" if "cell" in entry else "",
        }
        for entry in entries
    )


def measured(entry: dict) -> str:
    """Value and interval of an entry in a few digits, with the unit; nothing if it was not run."""
    if "value" not in entry:
        return ""
    value, low, high = (significant(entry[key]) for key in ("value", "low", "high"))
    unit = f" {entry['unit']}" if entry["unit"] else ""
    return f"{value}{unit}" + ("" if low == high else f" ({low} to {high})")


def significant(value: float) -> str:
    """Four significant digits, as in *82.36*, *−0.1234* and *3.1e-16*."""
    plain = value == 0 or 1e-4 <= abs(value) < 1e5
    return f"{value:.4g}".replace("-", "−") if plain else f"{value:.1e}"
