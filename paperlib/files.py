"""Files that are written whole or not at all.

For processes that do without PyTorch too, and for what has to work before anything is installed.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read; the message is one sentence for the user."""


def state(path: Path) -> list[int]:
    """Size and time of change (ns): what tells a file from another one of its name."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path`` and move it there: all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text``, atomically."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, value) -> None:
    """Write ``value`` as JSON, atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def save_array(path: Path, array: "np.ndarray") -> None:
    """``np.save`` to a path of any name."""
    import numpy as np

    with path.open("wb") as file:  # by its name, NumPy would add an ending
        np.save(file, array)


def load_json(path: Path, advice: str = ""):
    """Read JSON; :class:`CheckpointError` names a file that is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error, advice) from None


def unreadable(path: Path, error: Exception, advice: str = "") -> CheckpointError:
    """What to raise when ``error`` came of reading ``path``; ``advice`` says what to do."""
    why = f"{path} cannot be read ({type(error).__name__})"
    return CheckpointError(f"{why}; {advice}" if advice else why)
