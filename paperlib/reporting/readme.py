"""Numbers in the README and in docs/ are copied from ``figures/`` by this module, never typed.

A block starts with ``<!-- from PATH -->`` and ends with ``<!-- end -->``; what stands between is
the file's text or, for the path ``VERDICTS``, a table of the main verdicts in all profiles.
"""

import re
from pathlib import Path

from paperlib import paths
from paperlib.files import load_json, write_text
from paperlib.reporting.summary import across

VERDICTS = "figures/*/claims.json"
PROFILES = {
    "quick": "miniature",
    "longer": "trained longer",
    "averaged": "averaged SGD, to a plateau",
    "medium": "Penn Treebank",
    "paper": "section 3, paper's size",
}
"""Profiles with committed results, and what they stand for."""

BLOCK = re.compile(r"(<!-- from (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str, root: Path) -> str:
    """``text`` with every block filled from its file under ``root``.

    Raises ``FileNotFoundError`` when a block names a file that is not there.
    """

    def fill(match: re.Match) -> str:
        if match["path"] == VERDICTS:
            body = verdicts(root)
        else:
            body = (root / match["path"]).read_text(encoding="utf-8").strip()
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return BLOCK.sub(fill, text)


def verdicts(root: Path) -> str:
    """The key claims' verdicts in each of ``PROFILES``, as a table in Markdown."""
    ledgers = {
        f"[{title}](figures/{name}/report.html)": load_json(root / f"figures/{name}/claims.json")
        for name, title in PROFILES.items()
    }
    table = across({title: ledger["claims"] for title, ledger in ledgers.items()})
    return table.to_markdown()


def texts(root: Path) -> list[Path]:
    """What has such blocks."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def refresh() -> None:
    """Bring all of them up to date with ``figures/``."""
    for path in texts(paths.PROJECT):
        write_text(path, refreshed(path.read_text(encoding="utf-8"), paths.PROJECT))
