"""Where corpora come from: given folders, the project's ``data/``, a download, or Python itself."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from paperlib import paths
from paperlib.corpora import embedded
from paperlib.corpora.cache import encoded
from paperlib.corpora.corpus import Corpus
from paperlib.corpora.download import download
from paperlib.corpora.known import KNOWN
from paperlib.corpora.text import SPLITS, CorpusError, Text

VARIABLE = "PAPERLIB_DATA"
"""Environment variable that names a folder with ``ptb/`` and ``wikitext-2/``."""


def load(name: str, *, embedded_instead: bool = False) -> Corpus:
    """A corpus by name, or three text files of one's own by the path of their folder.

    Names are ``ptb``, ``wikitext-2`` and ``embedded``; a folder of such a name in the working
    directory is ``./ptb``. The first two are looked for in the folder that ``PAPERLIB_DATA``
    names, then in the project's ``data/``, then downloaded to the latter; with
    ``embedded_instead`` the embedded default stands in where none of that works, which a line
    on standard error and the corpus's title say.

    In a folder of one's own, files end in ``.txt`` or ``.tokens``, and one part of each name,
    between dots, dashes, underscores or spaces, begins with ``train``, ``valid`` or ``test``:
    ``train.txt``, ``wiki.valid.tokens``, ``my-testset.txt``.

    Encoded corpora are kept under ``runs/corpora/``, by the checksums of the texts.

    Raises :class:`CorpusError`.
    """
    if name in KNOWN:
        try:
            texts, title = _known(name), KNOWN[name].title
        except CorpusMissing as error:
            if not embedded_instead:
                raise
            print(f"{error}; the {embedded.TITLE} stands in for it.", file=sys.stderr)
            name = "embedded"
    elif name != "embedded":
        texts, title = _own(name), Path(name).expanduser().resolve().name
    if name == "embedded":
        texts, title = embedded.texts(), embedded.TITLE
    words, tokens = encoded(texts)
    checksums = {split: texts[split].checksum for split in SPLITS}
    return Corpus(name=name, title=title, words=words, checksums=checksums, **tokens)


class CorpusMissing(CorpusError):
    """A known corpus that is in no folder and cannot be downloaded."""


def find(name: str) -> Path | None:
    """The folder of this name in the first of the places that has one, if any.

    Raises :class:`CorpusError` where ``PAPERLIB_DATA`` names no folder.
    """
    return next((place / name for place in _places() if (place / name).is_dir()), None)


def _places() -> list[Path]:
    places = paths.data()
    if len(places) > 1 and not places[0].is_dir():
        given = os.environ[VARIABLE]
        raise CorpusError(f"{VARIABLE} names {given}, which is no folder; correct or unset it")
    return places


def _known(name: str) -> dict[str, Text]:
    """The splits of a known corpus, checked."""
    corpus, folder = KNOWN[name], find(name)
    if folder is None:
        places = _places()
        folder = places[-1] / name
        try:
            download(corpus, folder)
        except CorpusError as error:
            looked = " nor in ".join(str(place / name) for place in places)
            raise CorpusMissing(
                f"{corpus.title} is not in {looked} and cannot be downloaded ({error}); put "
                f"{', '.join(corpus.files().values())} into {folder}"
            ) from None
    texts = _read({split: folder / file for split, file in corpus.files().items()})
    for split, text in texts.items():
        if text.checksum != corpus.sha256[split]:
            raise CorpusError(
                f"{text.source} is not the {split} text of {corpus.title}: its SHA-256 begins with "
                f"{text.checksum[:12]}, not {corpus.sha256[split][:12]}; delete {folder} to "
                "download it, or load a text of your own by the path of its folder"
            )
    return texts


def _own(name: str) -> dict[str, Text]:
    """The splits in a folder of one's own."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise CorpusError(
            f"there is no corpus and no folder {name!r}; choose {', '.join(KNOWN)}, embedded or "
            "the path of a folder with three text files"
        )
    return _read({split: _own_file(folder, split) for split in SPLITS})


def _own_file(folder: Path, split: str) -> Path:
    try:
        files = list(folder.iterdir())
    except OSError as error:
        raise CorpusError(f"{folder} cannot be read: {error.strerror}") from None
    found = sorted(
        path
        for path in files
        if path.suffix in (".txt", ".tokens")
        and not path.name.startswith(".")
        and any(part.startswith(split) for part in re.split(r"[-._ ]", path.stem.lower()))
    )
    if len(found) == 1:
        return found[0]
    if found:
        listed = " and ".join(path.name for path in found)
        raise CorpusError(f"{folder} has {listed} for the {split} text; leave one of them there")
    raise CorpusError(f"{folder} has no {split} text; add it as {split}.txt")


def _read(files: Mapping[str, Path]) -> dict[str, Text]:
    texts = {}
    for split, path in files.items():
        try:
            texts[split] = Text(str(path), path.read_bytes())
        except FileNotFoundError:
            raise CorpusError(f"{path} is missing; add it or delete its folder") from None
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error.strerror}") from None
    return texts
