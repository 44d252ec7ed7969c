"""From a folder of text to shards: once, in threads, resumed where it was interrupted.

Two passes over the text. The first counts words, the second writes ids. Each works on segments of
about ``part_bytes`` and keeps what it made of each, so that an interrupted run goes on with the
next; the result does not depend on the number of threads.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Literal, TypeVar

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
    pieces,
    segments,
    split_of,
    text_files,
)
from paperlib.shards.parts import Shards
from paperlib.shards.vocabulary import save_counts, total, vocabulary_of
from paperlib.threads import cores

Share = Annotated[float, Field(ge=0, lt=1)]
Result = TypeVar("Result")


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


def prepare(folder: Path, settings: TextSettings, threads: int | None = None) -> Shards:
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
            _Preparation(folder, files, settings, made, threads or cores()).run()
    return Shards(made)


class _Preparation:
    def __init__(
        self, folder: Path, files: list[Path], settings: TextSettings, made: Path, threads: int
    ):
        self.folder, self.settings, self.made, self.threads = folder, settings, made, threads
        self.segments = segments(files, settings.part_bytes)
        self.partitions = min(4096, max(16, len(self.segments) // 16))
        self.damaged: dict[Path, str] = {}

    def run(self) -> None:
        """Both passes, then the index that says they are done."""
        self._over_segments("counting words", self._count, self.segments)
        whole = [s for s in enumerate(self.segments) if s[1].path not in self.damaged]
        counts = [self._file("counts", number) for number, _ in whole]
        if not counts:
            raise TextError(f"no file in {self.folder} can be read to its end")
        listed = vocabulary_of(counts, self.settings.vocabulary, self.partitions)
        if len(listed) < 3:
            raise TextError(f"the training documents in {self.folder} have no words")
        self.vocabulary = words.Vocabulary(listed)
        text = "\n".join(listed) + "\n"
        write_atomically(
            self.made / "vocabulary.txt", lambda file: file.write_text(text, encoding="utf-8")
        )
        self._over_segments("writing ids", self._encode, [segment for _, segment in whole])
        parts = [load_json(self._file("parts", number, "json")) for number, _ in whole]
        left_out = {str(path.relative_to(self.folder)): why for path, why in self.damaged.items()}
        save_json(
            self.made / "index.json",
            {
                "settings": self.settings.model_dump(),
                "left_out": left_out,
                "parts": {split: [part[split] for part in parts] for split in SPLITS},
            },
        )

    def _over_segments(
        self, title: str, work: Callable[[int, Segment], None], chosen: Sequence[Segment]
    ) -> None:
        numbers = {segment: number for number, segment in enumerate(self.segments)}
        with ThreadPoolExecutor(self.threads) as pool:
            running = {pool.submit(work, numbers[segment], segment): segment for segment in chosen}
            try:
                for done in bar(as_completed(running), total=len(running), title=title):
                    self._finish(done.result, running[done])
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _finish(self, result: Callable[[], None], segment: Segment) -> None:
        try:
            result()
        except DamagedFile as error:
            if self.settings.damaged == "fatal":
                raise
            self.damaged[segment.path] = str(error)

    def _count(self, number: int, segment: Segment) -> None:
        path = self._file("counts", number)
        if path.is_file():
            return
        empty = pa.table(
            {"word": pa.array([], pa.large_string()), "count": pa.array([], pa.int64())}
        )
        counted = empty
        for split, found in self._words(segment):
            if split == 0:
                counted = total([counted, words.count(found)])
        save_counts(path, counted, self.partitions)

    def _encode(self, number: int, segment: Segment) -> None:
        record = self._file("parts", number, "json")
        if record.is_file():
            return
        ids: list[list[np.ndarray]] = [[] for _ in SPLITS]
        for split, found in self._words(segment):
            ids[split].append(self.vocabulary.encode(found))
        entry = {}
        for name, arrays in zip(SPLITS, ids, strict=True):
            tokens = np.concatenate([np.empty(0, np.uint32), *arrays])
            path = self.made / name / f"{number:06d}.npy"
            # By a file handle: given a name, NumPy would add an ending to the temporary one.
            write_atomically(path, lambda file, tokens=tokens: _save(file, tokens))
            entry[name] = {
                "file": f"{name}/{path.name}",
                "tokens": len(tokens),
                "sha256": hashlib.sha256(tokens.astype("<u4").tobytes()).hexdigest(),
            }
        save_json(record, entry)

    def _words(self, segment: Segment) -> Iterator[tuple[int, pa.DictionaryArray]]:
        """Words of a segment piece by piece, each with its split."""
        shares = self.settings.valid, self.settings.test
        for documents in pieces(segment):
            by_split: list[list[bytes]] = [[] for _ in SPLITS]
            for document in documents:
                by_split[split_of(document, self.settings.seed, shares)].append(document)
            for split, some in enumerate(by_split):
                if some:
                    yield split, words.words_of(some, self.settings.tokens)

    def _file(self, kind: str, number: int, suffix: str = "arrow") -> Path:
        return self.made / kind / f"{number:06d}.{suffix}"


def _state(path: Path) -> list[int]:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns]


def _save(path: Path, tokens: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, tokens)
