"""Encoded corpora on disk: found by the checksums of their texts, so changed texts are noticed."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from paperlib import paths
from paperlib.checkpoints import write_atomically
from paperlib.corpora.text import SPLITS, Text, encode

VERSION = 1
"""Part of every key: raise it when the same text is to give other tokens."""


def encoded(texts: Mapping[str, Text]) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """As :func:`paperlib.corpora.text.encode`, at once where these texts were encoded before."""
    path = _path(texts)
    found = _read(path)
    if found is None:
        found = encode(texts)
        with suppress(OSError):  # a full or read-only disk costs the time saved, not the corpus
            _write(path, *found)
    return found


def _path(texts: Mapping[str, Text]) -> Path:
    key = "\n".join([str(VERSION), *(texts[split].checksum for split in SPLITS)])
    return paths.runs() / "corpora" / f"{hashlib.sha256(key.encode()).hexdigest()[:12]}.npz"


def _write(path: Path, words: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> None:
    # No word has white space in it; an array of strings would pad all words to the longest one.
    packed = np.frombuffer("\n".join(words).encode(), dtype=np.uint8)

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, words=packed, **arrays)

    write_atomically(path, write)


def _read(path: Path) -> tuple[tuple[str, ...], dict[str, np.ndarray]] | None:
    """What :func:`_write` wrote; None where there is nothing, or a damaged file."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if file.zip.testzip() is not None:
                return None
            words = tuple(file["words"].tobytes().decode().split("\n"))
            return words, {split: file[split] for split in SPLITS}
    except Exception:  # damage surfaces as one of many kinds of error
        return None
