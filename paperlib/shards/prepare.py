"""From a folder of text to shards: once, in processes, resumed where it was interrupted.

Two passes. The first reads the text, numbers its words and counts them; the second turns the
numbers into ids of the vocabulary. Each works on groups of about ``part_bytes``, a stretch of a
file or some small files, and keeps what it made of each, so that an interrupted run goes on with
the next; the result does not depend on the number of processes. For a time, as much disk is taken
again as the shards take in the end.
"""

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa
from filelock import FileLock
from pydantic import Field

from paperlib import paths
from paperlib.checkpoints import load_json, save_json, write_atomically
from paperlib.progress import bar
from paperlib.settings import Count, Settings
from paperlib.shards import words
from paperlib.shards.documents import (
    SPLITS,
    DamagedFile,
    Segment,
    TextError,
    groups,
    pieces,
    segments,
    split_of,
    text_files,
)
from paperlib.shards.draft import Draft
from paperlib.shards.parts import Shards
from paperlib.shards.vocabulary import save_counts, vocabulary_of
from paperlib.threads import cores

Share = Annotated[float, Field(ge=0, lt=1)]


class TextSettings(Settings):
    """How a folder of text becomes shards."""

    vocabulary: Annotated[int, Field(ge=3)] = 100_000
    """Words, with the end of a line and the unknown word."""
    tokens: Literal["words", "whitespace"] = "words"
    part_bytes: Count = 20_000_000
    """Text of a part: the paper's 20 MB."""
    valid: Share = 0.025
    test: Share = 0.025
    seed: Annotated[int, Field(ge=0)] = 0
    damaged: Literal["fatal", "skip"] = "fatal"
    """What to do about a file that cannot be read: stop, or leave all of it out and say so."""


def prepare(folder: Path, settings: TextSettings, processes: int | None = None) -> Shards:
    """The shards of a folder of text, made now or found again.

    They are known by the settings and by the names, sizes and times of change of the files.

    Raises :class:`~paperlib.shards.documents.TextError` where there is no text or no vocabulary to
    be had, and for a file that cannot be read, unless these are to be skipped.
    """
    files = text_files(folder)
    known = {str(path.relative_to(folder)): _state(path) for path in files}
    key = json.dumps({"settings": settings.model_dump(), "files": known}, sort_keys=True)
    made = paths.runs() / "shards" / hashlib.sha256(key.encode()).hexdigest()[:12]
    made.mkdir(parents=True, exist_ok=True)
    with FileLock(made / "lock"):
        if not (made / "index.json").is_file():
            _Preparation(folder, files, settings, made, processes or cores()).run()
    return Shards(made)


class _Preparation:
    def __init__(
        self, folder: Path, files: list[Path], settings: TextSettings, made: Path, processes: int
    ):
        self.folder, self.settings, self.made, self.processes = folder, settings, made, processes
        self.groups = groups(segments(files, settings.part_bytes), settings.part_bytes)
        self.partitions = min(4096, max(16, len(self.groups) // 16))
        self.left_out: dict[str, str] = {}

    def run(self) -> None:
        """Both passes, then the index that says they are done."""
        every = range(len(self.groups))
        self._over_groups("counting words", "_count", every)
        for number in every:
            self.left_out |= load_json(self._file("counts", number, "json"))
        whole = [
            number
            for number in every
            if any(self._name(segment) not in self.left_out for segment in self.groups[number])
        ]
        if not whole:
            raise TextError(f"no file in {self.folder} can be read to its end")
        counts = [self._file("counts", number) for number in whole]
        listed = vocabulary_of(counts, self.settings.vocabulary, self.partitions)
        if len(listed) < 3:
            raise TextError(f"the training documents in {self.folder} have no words")
        self.vocabulary = words.Vocabulary(listed)
        text = "\n".join(listed) + "\n"
        write_atomically(
            self.made / "vocabulary.txt", lambda file: file.write_text(text, encoding="utf-8")
        )
        self._over_groups("writing ids", "_encode", whole)
        parts = [load_json(self._file("parts", number, "json")) for number in whole]
        save_json(
            self.made / "index.json",
            {
                "settings": self.settings.model_dump(),
                "left_out": self.left_out,
                "parts": {
                    split: [one for part in parts for one in part[split]] for split in SPLITS
                },
            },
        )

    def _over_groups(self, title: str, work: str, chosen: Sequence[int]) -> None:
        processes = min(self.processes, len(chosen))
        if processes <= 1:
            for number in bar(chosen, total=len(chosen), title=title):
                getattr(self, work)(number)
            return
        # Not forked from this process, which has threads, but from one that only has the modules.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        pool = ProcessPoolExecutor(processes, context, _begin, (self,))
        try:
            # Whole compressed files can be long: they start first.
            longest_first = sorted(chosen, key=self._length, reverse=True)
            running = [pool.submit(_work, work, number) for number in longest_first]
            for done in bar(as_completed(running), total=len(running), title=title):
                done.result()
        except BrokenProcessPool:
            raise TextError(
                "a process that read the text was ended, most often because the memory ran out; "
                "what is done stays, and the next start goes on from there"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)

    def _count(self, number: int) -> None:
        record = self._file("counts", number, "json")
        if record.is_file():
            return
        left_out: dict[str, str] = {}
        while True:
            readable = [one for one in self.groups[number] if self._name(one) not in left_out]
            try:
                counts = self._draft(number).write(self._words(readable))
                break
            except DamagedFile as error:
                if self.settings.damaged == "fatal":
                    raise
                left_out[str(error.path.relative_to(self.folder))] = str(error)
        save_counts(self._file("counts", number), counts, self.partitions)
        save_json(record, left_out)

    def _encode(self, number: int) -> None:
        record = self._file("parts", number, "json")
        if record.is_file():
            return
        cutters = [Cutter(self.settings.part_bytes) for _ in SPLITS]
        entries: dict[str, list[dict]] = {split: [] for split in SPLITS}
        for split, ids, size in self._draft(number).read(self.vocabulary.ids):
            for tokens in cutters[split].add(ids, size):
                self._keep(entries, number, split, tokens)
        for split, cutter in enumerate(cutters):
            self._keep(entries, number, split, cutter.rest())
        save_json(record, entries)
        self._draft(number).remove()

    def _keep(self, entries: dict, number: int, split: int, tokens: np.ndarray) -> None:
        if not len(tokens):
            return
        name = SPLITS[split]
        file = f"{name}/{number:06d}-{len(entries[name]):04d}.npy"
        write_atomically(self.made / file, lambda path: _save(path, tokens))
        checksum = hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()
        entries[name].append({"file": file, "tokens": len(tokens), "sha256": checksum})

    def _words(self, some: Sequence[Segment]) -> Iterator[tuple[int, pa.DictionaryArray, int]]:
        """Words of segments piece by piece, each with its split and its bytes of text."""
        shares = self.settings.valid, self.settings.test
        for documents in chain.from_iterable(map(pieces, some)):
            by_split: list[list[bytes]] = [[] for _ in SPLITS]
            for document in documents:
                by_split[split_of(document, self.settings.seed, shares)].append(document)
            for split, own in enumerate(by_split):
                if own:
                    yield split, words.words_of(own, self.settings.tokens), sum(map(len, own))

    def _length(self, number: int) -> int:
        return sum(one.path.stat().st_size for one in self.groups[number] if one.stop is None)

    def _name(self, segment: Segment) -> str:
        return str(segment.path.relative_to(self.folder))

    def _draft(self, number: int) -> Draft:
        return Draft(self.made / "draft" / f"{number:06d}")

    def _file(self, kind: str, number: int, suffix: str = "arrow") -> Path:
        return self.made / kind / f"{number:06d}.{suffix}"


class Cutter:
    """Cuts the ids of a text into parts of ``size`` bytes of it, the last of half as many at
    least where there is more than one."""

    def __init__(self, size: int):
        self.size = size
        self._ids = [np.empty(0, np.uint32)]
        self._bytes = 0

    def add(self, ids: np.ndarray, size: int) -> Iterator[np.ndarray]:
        """Take in the ids of ``size`` bytes of text; what is full comes out."""
        self._ids.append(ids)
        self._bytes += size
        while self._bytes >= 1.5 * self.size:
            tokens = np.concatenate(self._ids)
            at = round(len(tokens) * self.size / self._bytes)
            self._ids, self._bytes = [tokens[at:]], self._bytes - self.size
            yield tokens[:at]

    def rest(self) -> np.ndarray:
        """What is left."""
        return np.concatenate(self._ids)


_mine: "_Preparation"
"""In a process of the pool, what it works on."""


def _begin(preparation: "_Preparation") -> None:
    global _mine
    _mine = preparation
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says when to stop


def _work(work: str, number: int) -> None:
    getattr(_mine, work)(number)


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _save(path: Path, tokens: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, tokens)
