"""From a folder of text to shards: once, in processes, resumed where it was interrupted.

Two passes. The first reads the text, numbers its words and counts them; the second turns the
numbers into ids of the vocabulary. Each works on groups of about ``part_bytes``, a stretch of a
file or some small files, and keeps what it made of each, so that an interrupted run goes on with
the next; the result does not depend on the number of processes. A compressed file is a group of its
own, however long, and so is drafted and counted some ``DRAFT`` bytes of text at a time. Until all
is done, drafts and counts take more disk than the shards do in the end.
"""

import hashlib
import json
import multiprocessing
import shutil
import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from filelock import FileLock
from pydantic import Field, model_validator

from paperlib import paths
from paperlib.files import (
    CheckpointError,
    load_json,
    save_array,
    state,
    write_atomically,
    write_json,
    write_text,
)
from paperlib.lifetime import end_with
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
from paperlib.shards.draft import Draft, Piece
from paperlib.shards.parts import Shards
from paperlib.shards.vocabulary import (
    FAN_IN,
    FIRST,
    counts_of,
    merge,
    more,
    save_counts,
    vocabulary_of,
)
from paperlib.threads import cores

DRAFT = 4_000_000
"""Bytes of text, at most, whose words are held at once."""

VERSION = 3
"""Part of the name of shards: raise it when the groups, or what is made of them, change."""

Share = Annotated[float, Field(ge=0, lt=1)]


class TextSettings(Settings):
    """How a folder of text becomes shards."""

    vocabulary: Annotated[int, Field(ge=3)] = 100_000
    """Words, with the end of a line and the unknown word."""
    tokens: Literal["words", "whitespace"] = "words"
    part_bytes: Count = 20_000_000
    """Text of a part: the paper's 20 MB."""
    valid: Share = 0.001
    test: Share = 0.001
    """Shares of the documents that are held out."""
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] = 0
    damaged: Literal["fatal", "skip"] = "fatal"
    """What to do about a file that cannot be read: stop, or leave all of it out and say so."""

    @model_validator(mode="after")
    def _something_is_left(self):
        if self.valid + self.test >= 1:
            raise ValueError("the shares of validation and test text leave nothing to train on")
        return self


def prepare(folder: Path, settings: TextSettings, processes: int | None = None) -> Shards:
    """The shards of a folder of text, made now or found again.

    They are known by the settings and by the names, sizes and times of change of the files.

    Raises :class:`~paperlib.shards.documents.TextError` where there is no text or no vocabulary to
    be had, and for a file that cannot be read, unless these are to be skipped.
    """
    unreadable: dict[Path, str] | None = {} if settings.damaged == "skip" else None
    files = text_files(folder, unreadable)
    known = {str(path.relative_to(folder)): state(path) for path in files}
    left_out = {str(path.relative_to(folder)): why for path, why in (unreadable or {}).items()}
    key = {"version": VERSION, "settings": settings.model_dump(), "files": known}
    text = json.dumps(key | {"left_out": sorted(left_out)}, sort_keys=True)
    made = paths.runs() / "shards" / hashlib.sha256(text.encode()).hexdigest()[:12]
    made.mkdir(parents=True, exist_ok=True)
    with FileLock(made / "lock"):
        if not (made / "index.json").is_file():
            for unfinished in made.rglob(".*.tmp"):  # of a process that was killed
                unfinished.unlink()
            number = processes or cores()
            try:
                _Preparation(folder, files, settings, made, number, left_out).run()
            except CheckpointError as error:
                raise TextError(f"{error}; delete {made} to prepare the text again") from None
    return Shards(made)


class _Preparation:
    def __init__(
        self,
        folder: Path,
        files: list[Path],
        settings: TextSettings,
        made: Path,
        processes: int,
        left_out: dict[str, str],
    ):
        self.folder, self.settings, self.made, self.processes = folder, settings, made, processes
        self.groups = groups(segments(files, settings.part_bytes), settings.part_bytes)
        self.left_out = left_out

    def run(self) -> None:
        """Both passes, then the index that says they are done."""
        every = range(len(self.groups))
        # Whole compressed files can be long: they start first.
        self._over("counting words", "_count", sorted(every, key=self._length, reverse=True))
        records = [load_json(self._record("counts", number)) for number in every]
        for record in records:
            self.left_out |= record["left_out"]
        whole = [number for number in every if self._readable(number, self.left_out)]
        if not whole:
            raise TextError(f"no file in {self.folder} can be read to its end")
        counts = [
            self._counts(number, draft)
            for number in whole
            for draft in range(records[number]["drafts"])
        ]
        listed = vocabulary_of(*self._few(counts), self.settings.vocabulary) if counts else []
        if len(listed) < 3:
            raise TextError(f"the training documents in {self.folder} have no words")
        self.vocabulary = words.Vocabulary(listed)
        write_text(self.made / "vocabulary.txt", "\n".join(listed) + "\n")
        self._over("writing ids", "_encode", whole)
        parts = [load_json(self._record("parts", number)) for number in whole]
        write_json(
            self.made / "index.json",
            {
                "settings": self.settings.model_dump(),
                "left_out": self.left_out,
                "parts": {
                    split: [one for part in parts for one in part[split]] for split in SPLITS
                },
            },
        )
        shutil.rmtree(self.made / "counts")

    def _few(self, files: list[Path]) -> tuple[list[Path], int]:
        """Counts merged until they are ``FAN_IN`` files at most, and their partitions."""
        partitions, level = FIRST, 0
        while len(files) > FAN_IN:
            level += 1
            jobs = [
                (files[start : start + FAN_IN], self.made / f"counts/{level}/{start}", partitions)
                for start in range(0, len(files), FAN_IN)
            ]
            self._over("adding up", "_merge", jobs)
            files, partitions = [path for _, path, _ in jobs], more(partitions)
        return files, partitions

    def _over(self, title: str, work: str, jobs: Sequence) -> None:
        processes = min(self.processes, len(jobs))
        if processes <= 1:
            for one in bar(jobs, total=len(jobs), title=title):
                getattr(self, work)(one)
            return
        # Not forked from this process, which has threads, but from one that only has the modules.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        # Its processes end when this end of the pipe is closed, as it is when this process ends.
        theirs, ours = context.Pipe(duplex=False)
        pool = ProcessPoolExecutor(processes, context, _begin, (self, theirs))
        try:
            _all_done(pool, work, jobs, 2 * processes, title)
        except BrokenProcessPool:
            raise TextError(
                "a process that read the text was ended, most often because the memory ran out; "
                "what is done stays, and the next start goes on from there"
            ) from None
        finally:
            ours.close()
            pool.shutdown(cancel_futures=True)
            theirs.close()

    def _count(self, number: int) -> None:
        record = self._record("counts", number)
        if record.is_file():
            return
        left_out: dict[str, str] = {}
        while True:
            try:
                drafts = self._write_drafts(number, self._readable(number, left_out))
                break
            except DamagedFile as error:
                if self.settings.damaged == "fatal":
                    raise
                left_out[str(error.path.relative_to(self.folder))] = str(error)
        write_json(record, {"drafts": drafts, "left_out": left_out})

    def _write_drafts(self, number: int, some: Sequence[Segment]) -> int:
        """Drafts of a group and their counts; returns how many."""
        draft = -1
        longest = min(DRAFT, self.settings.part_bytes)
        for draft, few in enumerate(_in_rows(self._pieces(some), longest)):
            counts = counts_of(*self._draft(number, draft).write(few))
            save_counts(self._counts(number, draft), counts)
            few.clear()  # before the next ones come
        return draft + 1

    def _merge(self, job: tuple[list[Path], Path, int]) -> None:
        files, path, partitions = job
        if not path.is_file():
            merge(files, path, partitions)

    def _encode(self, number: int) -> None:
        record = self._record("parts", number)
        if record.is_file():
            return
        cutters = [Cutter(self.settings.part_bytes) for _ in SPLITS]
        entries: dict[str, list[dict]] = {split: [] for split in SPLITS}
        count = load_json(self._record("counts", number))["drafts"]
        drafts = [self._draft(number, draft) for draft in range(count)]
        for split, ids, size in chain.from_iterable(
            draft.read(self.vocabulary.ids) for draft in drafts
        ):
            for tokens in cutters[split].add(ids, size):
                self._keep(entries, number, split, tokens)
        for split, cutter in enumerate(cutters):
            self._keep(entries, number, split, cutter.rest())
        write_json(record, entries)
        for draft in drafts:
            draft.remove()

    def _keep(self, entries: dict, number: int, split: int, tokens: np.ndarray) -> None:
        if not len(tokens):
            return
        name = SPLITS[split]
        file = f"{name}/{number:06d}-{len(entries[name]):04d}.npy"
        write_atomically(self.made / file, lambda path: save_array(path, tokens))
        checksum = hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest()
        entries[name].append({"file": file, "tokens": len(tokens), "sha256": checksum})

    def _pieces(self, some: Sequence[Segment]) -> Iterator[Piece]:
        shares = self.settings.valid, self.settings.test
        for documents in chain.from_iterable(map(pieces, some)):
            by_split: list[list[bytes]] = [[] for _ in SPLITS]
            for document in documents:
                by_split[split_of(document, self.settings.seed, shares)].append(document)
            for split, own in enumerate(by_split):
                if own:
                    found = words.words_of(own, self.settings.tokens)
                    yield Piece(split, found, sum(map(len, own)))

    def _length(self, number: int) -> int:
        return sum(one.path.stat().st_size for one in self.groups[number] if one.stop is None)

    def _readable(self, number: int, left_out: dict[str, str]) -> list[Segment]:
        return [
            segment
            for segment in self.groups[number]
            if str(segment.path.relative_to(self.folder)) not in left_out
        ]

    def _draft(self, number: int, draft: int) -> Draft:
        return Draft(self.made / f"draft/{number:06d}-{draft:04d}")

    def _counts(self, number: int, draft: int) -> Path:
        return self.made / f"counts/{number:06d}-{draft:04d}.arrow"

    def _record(self, kind: str, number: int) -> Path:
        return self.made / f"{kind}/{number:06d}.json"


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


def _begin(preparation: "_Preparation", connection: Connection) -> None:
    global _mine
    _mine = preparation
    end_with(connection)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process says when to stop


def _work(work: str, one) -> None:
    getattr(_mine, work)(one)


def _all_done(
    pool: ProcessPoolExecutor, work: str, jobs: Sequence, at_once: int, title: str
) -> None:
    """Wait for all ``jobs``, of which no more are handed out than are soon begun."""
    waiting, running = iter(jobs), set()
    with bar(total=len(jobs), title=title) as steps:
        while True:
            few = islice(waiting, at_once - len(running))
            running |= {pool.submit(_work, work, one) for one in few}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                one.result()
                steps.update()


def _in_rows(some: Iterable[Piece], size: int) -> Iterator[list[Piece]]:
    """Pieces that are some ``size`` bytes of text together."""
    row, room = [], size
    for piece in some:
        row.append(piece)
        room -= piece.size
        if room <= 0:
            yield row
            row, room = [], size
    if row:
        yield row
