"""Shards as they are read: a vocabulary, and parts of tokens that stay on the disk.

They may lie wherever fsspec reads: in a folder, or at an address such as ``s3://bucket/shards``, of
which the parts are fetched when they are needed, once, and checked.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import fsspec
import numpy as np
from filelock import FileLock
from fsspec.implementations.local import LocalFileSystem

from paperlib import paths
from paperlib.files import write_atomically
from paperlib.shards.documents import SPLITS, TextError


@dataclass(frozen=True)
class Part:
    """One part of a split: the ids made of some 20 MB of text."""

    place: fsspec.AbstractFileSystem
    address: str
    tokens: int
    sha256: str
    """Of the ids as little-endian bytes."""

    def ids(self) -> np.ndarray:
        """``(tokens,)`` uint32, mapped into memory and read only.

        Raises :class:`~paperlib.shards.documents.TextError` for a part that cannot be fetched, or
        arrives damaged; of one that is here already, it is the length that is checked.
        """
        if isinstance(self.place, LocalFileSystem):
            return self._opened(self.address)
        copy = paths.runs() / "shards" / "fetched" / f"{self.sha256}.npy"
        copy.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(copy.with_suffix(".lock")):
            if not copy.is_file():
                write_atomically(copy, self._fetch)
        return self._opened(copy)

    def _opened(self, path: Path | str) -> np.ndarray:
        try:
            ids = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise TextError(f"the part {path} cannot be read ({error})") from None
        if ids.shape != (self.tokens,) or ids.dtype != np.uint32:
            raise TextError(
                f"the part {path} is damaged: it has not the {self.tokens} ids that it should have"
            )
        return ids

    def _fetch(self, path: Path) -> None:
        try:
            self.place.get_file(self.address, str(path))
            ids = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise TextError(f"the part {self.address} cannot be fetched ({error})") from None
        if hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest() != self.sha256:
            raise TextError(f"the part {self.address} is damaged: its checksum is another one")


class Shards:
    """What :func:`paperlib.shards.prepare.prepare` made of a folder of text."""

    def __init__(self, address: str | Path):
        """Raises :class:`~paperlib.shards.documents.TextError` where there are none."""
        self.address = str(address)
        try:
            self._place, self._root = fsspec.url_to_fs(self.address)
            text = self._read("index.json")
            index = json.loads(text)
        except (ImportError, OSError, ValueError) as error:
            raise TextError(f"{address} holds no shards ({error})") from None
        self.checksum = hashlib.sha256(text.encode()).hexdigest()
        """Of the index, and with it of all ids."""
        try:
            self.left_out: dict[str, str] = index["left_out"]
            """Files that could not be read, and why."""
            self._parts = {
                split: [
                    Part(self._place, f"{self._root}/{p['file']}", p["tokens"], p["sha256"])
                    for p in index["parts"][split]
                ]
                for split in SPLITS
            }
        except (KeyError, TypeError):
            raise TextError(
                f"{address} holds no shards (its index.json is another program's)"
            ) from None

    def words(self) -> list[str]:
        """The vocabulary by id, the most frequent words first."""
        try:
            return self._read("vocabulary.txt").split("\n")[:-1]
        except (OSError, ValueError) as error:
            raise TextError(f"{self.address} has no vocabulary ({error})") from None

    def parts(self, split: str) -> list[Part]:
        """Parts of ``train``, ``valid`` or ``test``, in the order of the text."""
        return self._parts[split]

    def tokens(self, split: str) -> int:
        """Number of tokens of a split."""
        return sum(part.tokens for part in self._parts[split])

    def _read(self, name: str) -> str:
        return self._place.cat_file(f"{self._root}/{name}").decode()
