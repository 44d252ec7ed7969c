"""Shards as they are read: a vocabulary, and parts of tokens that stay on the disk."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paperlib.checkpoints import load_json


@dataclass(frozen=True)
class Part:
    """One part of a split: the ids made of one segment of the text."""

    path: Path
    tokens: int
    sha256: str

    def ids(self) -> np.ndarray:
        """``(tokens,)`` uint32, mapped into memory and read only."""
        return np.load(self.path, mmap_mode="r")


class Shards:
    """What :func:`paperlib.shards.prepare.prepare` made of a folder of text."""

    def __init__(self, folder: Path):
        self.folder = folder
        index = load_json(folder / "index.json")
        self.left_out: dict[str, str] = index["left_out"]
        """Files that could not be read, and why."""
        self._parts = {
            split: [Part(folder / p["file"], p["tokens"], p["sha256"]) for p in parts]
            for split, parts in index["parts"].items()
        }

    def words(self) -> list[str]:
        """The vocabulary by id, the most frequent words first."""
        return (self.folder / "vocabulary.txt").read_text(encoding="utf-8").split("\n")[:-1]

    def parts(self, split: str) -> list[Part]:
        """Parts of ``train``, ``valid`` or ``test``, in the order of the text; empty ones not."""
        return [part for part in self._parts[split] if part.tokens]

    def tokens(self, split: str) -> int:
        """Number of tokens of a split."""
        return sum(part.tokens for part in self._parts[split])
