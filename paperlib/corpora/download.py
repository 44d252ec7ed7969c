"""Downloads of known corpora: checked, from whichever mirror answers, whole or not at all."""

import queue
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pooch

from paperlib.corpora.known import Known
from paperlib.corpora.text import CorpusError
from paperlib.paths import DOWNLOADED
from paperlib.progress import bar

ANSWER = 4.0
"""Seconds in which a mirror must answer; all are asked at once, so no network takes no longer."""

STALL = 3.0
"""Seconds without a byte after which a download is given up for the next mirror."""

_CHUNK = 1 << 16


def download(corpus: Known, folder: Path) -> None:
    """Make ``folder``, with the three files of ``corpus`` in it, each of the right SHA-256.

    Raises :class:`CorpusError`, which says what was wrong with each mirror.
    """
    pooch.get_logger().setLevel("WARNING")  # the progress bar says what it says below that
    failures = dict.fromkeys(corpus.mirrors, _silence())
    for mirror, refusal in _answers(corpus.mirrors):
        try:
            if refusal is None:
                return _fetch(corpus, mirror, folder)
            failures[mirror] = refusal
        except OSError as error:
            failures[mirror] = _reason(error)
        except ValueError:
            failures[mirror] = "the text it sent has another SHA-256"
    raise CorpusError(
        "; ".join(f"{urlsplit(mirror).netloc}: {why}" for mirror, why in failures.items())
    )


def _answers(mirrors: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Mirrors in the order in which they answer, with the reason why one has no training text."""
    answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()

    def ask(mirror: str) -> None:
        request = pooch.HTTPDownloader(timeout=ANSWER)
        try:
            has = request(mirror.format(split="train"), None, None, check_only=True)
        except (OSError, ValueError) as error:
            answers.put((mirror, _reason(error)))
        else:
            answers.put((mirror, None if has else "it does not have the text"))

    # Looking up a host's address obeys no timeout: threads that may be left behind do.
    for mirror in mirrors:
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    deadline = time.monotonic() + ANSWER
    for _ in mirrors:
        try:
            yield answers.get(timeout=max(0, deadline - time.monotonic()))
        except queue.Empty:
            return


def _silence() -> str:
    return f"no answer within {ANSWER:g} s"


def _reason(error: Exception) -> str:
    # The downloader's errors are system errors too, but without the system's words.
    if type(error).__name__.endswith("Timeout"):
        return _silence()
    return getattr(error, "strerror", None) or type(error).__name__


def _fetch(corpus: Known, mirror: str, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        complete = Path(temporary) / folder.name
        for split, name in corpus.files().items():
            progress = bar(total=1, title=f"{corpus.title}, {split}", unit="B", unit_scale=True)
            with closing(progress):
                pooch.retrieve(
                    mirror.format(split=split),
                    known_hash=f"sha256:{corpus.sha256[split]}",
                    fname=name,
                    path=complete,
                    downloader=pooch.HTTPDownloader(
                        progressbar=progress, chunk_size=_CHUNK, timeout=STALL
                    ),
                )
        (complete / DOWNLOADED).touch()
        try:
            complete.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process may have been faster
                raise
