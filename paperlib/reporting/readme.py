"""Numbers in the README are copied from ``figures/`` by this module, never typed.

A block starts with ``<!-- from PATH -->`` and ends with ``<!-- end -->``; what stands between is
the file's text.
"""

import re
from pathlib import Path

from paperlib import paths
from paperlib.files import write_atomically

BLOCK = re.compile(r"(<!-- from (?P<path>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str, root: Path) -> str:
    """``text`` with every block filled from its file under ``root``.

    Raises ``FileNotFoundError`` when a block names a file that is not there.
    """

    def fill(match: re.Match) -> str:
        body = (root / match["path"]).read_text(encoding="utf-8").strip()
        return f"{match[1]}\n{body}\n\n{match[3]}"

    return BLOCK.sub(fill, text)


def refresh() -> None:
    """Bring the README up to date with ``figures/``."""
    path = paths.PROJECT / "README.md"
    text = refreshed(path.read_text(encoding="utf-8"), paths.PROJECT)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
