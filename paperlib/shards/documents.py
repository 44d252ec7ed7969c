"""Documents of a folder of text files, read piece by piece, plain or compressed.

A document is what stands between empty lines; one longer than a piece is cut, at the end of a line
if there is any. Which split a document belongs to is a seeded hash of its bytes, so that the same
document goes to the same split wherever it stands.
"""

import codecs
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

SUFFIXES = {".txt": None, ".gz": "gzip", ".zst": "zstd"}
"""Endings of the files that are read, and how they are compressed."""

PIECE = 1 << 21
"""Bytes of text that are read and worked on at once."""

SPLITS = ("train", "valid", "test")


BREAK = re.compile(rb"\n(?:[ \t\r]*\n)+")
"""What stands between two documents."""


class TextError(ValueError):
    """A folder of text that nothing can be made of; the message is one sentence for the user."""


class DamagedFile(TextError):
    """The file ``path`` cannot be read to its end; the message is one sentence that names it."""

    def __init__(self, path: Path, why: str):
        super().__init__(path, why)
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path} {self.why}"


@dataclass(frozen=True)
class Segment:
    """Bytes ``start`` to before ``stop`` of a file; ``stop`` None is its end.

    Compressed files are one segment, for they can only be read from their beginning.
    """

    path: Path
    start: int = 0
    stop: int | None = None


def text_files(folder: Path, unreadable: dict[Path, str] | None = None) -> list[Path]:
    """All text files below ``folder``, by their path; links are followed, each folder read once.

    What the system does not let us look at enters ``unreadable``, with the reason.

    Raises :class:`TextError` where there is no such folder or no text in it, and
    :class:`DamagedFile` for what cannot be looked at where there is no ``unreadable``.
    """
    if not folder.is_dir():
        raise TextError(f"there is no folder {folder}")

    def failed(error: OSError) -> None:
        damaged = DamagedFile(Path(error.filename), f"cannot be read ({error.strerror})")
        if unreadable is None:
            raise damaged
        unreadable[damaged.path] = str(damaged)

    found = sorted(_files(folder, failed))
    if not found:
        kinds = ", ".join(SUFFIXES)
        raise TextError(f"{folder} has no text: no file in it ends with {kinds}")
    return found


def _files(folder: Path, failed: Callable[[OSError], None]) -> Iterator[Path]:
    known = set()
    for here, below, names in os.walk(folder, followlinks=True, onerror=failed):
        real = os.path.realpath(here)
        if real in known:
            below.clear()
            continue
        known.add(real)
        below.sort()
        for path in (Path(here, name) for name in names):
            try:
                if path.suffix in SUFFIXES and path.is_file():
                    yield path
            except OSError as error:  # names in a folder may be had where the files may not
                failed(error)


def segments(paths: list[Path], size: int) -> list[Segment]:
    """The files cut into stretches of about ``size`` bytes, compressed ones whole, in order.

    They are cut where a document ends, or a line if no document ends within ``PIECE`` bytes, or
    else a word. The last stretch of a file has half of ``size`` at least. A file that cannot be
    read is whole, for :func:`pieces` to say so.
    """
    found = []
    for path in paths:
        length = path.stat().st_size
        cuts = []
        if SUFFIXES[path.suffix] is None:
            with suppress(OSError), path.open("rb") as file:
                cuts = [_cut_after(file, at) for at in range(size, length - size // 2, size)]
        ends = sorted({cut for cut in cuts if cut < length})
        found += [
            Segment(path, start, stop)
            for start, stop in zip([0, *ends], [*ends, None], strict=True)
        ]
    return found


def groups(some: list[Segment], size: int) -> list[list[Segment]]:
    """Segments that are worked on together: one of a file that was cut, or small files in a row
    that come to about ``size`` bytes.

    A file that was cut shares no group with another: if it proves damaged, its groups go whole.
    """
    found: list[list[Segment]] = []
    room = 0
    for segment in some:
        whole = segment.start == 0 and segment.stop is None
        length = segment.path.stat().st_size
        if not whole or room <= length / 2:
            found.append([])
            room = size
        found[-1].append(segment)
        room = room - length if whole else 0
    return found


def _cut_after(file: BinaryIO, at: int) -> int:
    """Where a document ends after ``at``, or a line or word, if these end much sooner."""
    file.seek(at)
    while text := file.read(PIECE):
        if found := BREAK.search(text) or re.search(rb"\n", text) or re.search(rb" ", text):
            return at + found.end()
        at += len(text)
    return at


def pieces(segment: Segment) -> Iterator[list[bytes]]:
    """Documents of a segment, some ``PIECE`` bytes at a time.

    Raises :class:`DamagedFile` for a file that is cut off, garbled, or no UTF-8.
    """
    where = segment.start
    try:
        for text, begins in _texts(segment):
            where = begins
            text.decode()  # refuses what is no UTF-8 before anything is made of it
            yield _documents(text)
    except UnicodeDecodeError as error:
        why = f"is no UTF-8 at byte {where + error.start} of its text"
        raise DamagedFile(segment.path, why) from None
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise DamagedFile(segment.path, f"cannot be read to its end ({error})") from None


def split_of(document: bytes, seed: int, shares: tuple[float, float]) -> int:
    """0, 1 or 2 for training, validation and test; ``shares`` are those of the latter two."""
    key = seed.to_bytes(8, "little")
    number = int.from_bytes(hashlib.blake2b(document, digest_size=8, key=key).digest(), "little")
    at = number / 2**64
    return 1 if at < shares[0] else 2 if at < sum(shares) else 0


def _documents(text: bytes) -> list[bytes]:
    """Without the empty lines between them."""
    return [document for part in BREAK.split(text) if (document := part.strip())]


def _texts(segment: Segment) -> Iterator[tuple[bytes, int]]:
    """Texts of about ``PIECE`` bytes that end where a document does, and where each begins."""
    kind = SUFFIXES[segment.path.suffix]
    with pa.OSFile(str(segment.path)) as raw:
        raw.seek(segment.start)
        file = raw if kind is None else pa.CompressedInputStream(raw, kind)
        begins, rest, mark = segment.start, b"", codecs.BOM_UTF8
        left = math.inf if segment.stop is None else segment.stop - segment.start
        while read := file.read(min(PIECE, left)):
            left -= len(read)
            text = rest + read
            if begins == 0 and text.startswith(mark):
                text, begins = text[len(mark) :], len(mark)
            ends = (found.end() for found in BREAK.finditer(text))
            end = max(ends, default=0) or text.rfind(b"\n") + 1 or text.rfind(b" ") + 1
            yield text[:end], begins
            rest, begins = text[end:], begins + end
        yield rest, begins
