"""Loading and encoding a corpus, beside a plain loop over its lines.

The plain loop reads each line twice, once for the vocabulary and once for the ids, as language
model code usually does. ``cold`` has no cache of ours, ``cached`` has one; both check SHA-256.
WikiText-2 from the folder in PAPERLIB_DATA or the project's ``data/``; without it there is nothing
to measure.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Benchmark, Case, Work
from paperlib import corpora, paths
from paperlib.corpora.known import KNOWN

NAME = "wikitext-2"


def plain(folder: Path) -> dict[str, np.ndarray]:
    """Token ids of the three splits, from loops."""
    files = {split: folder / file for split, file in KNOWN[NAME].files().items()}
    ids: dict[str, int] = {}
    with files["train"].open(encoding="utf-8") as lines:
        for line in lines:
            for word in [*line.split(), "<eos>"]:
                if word not in ids:
                    ids[word] = len(ids)
    arrays = {}
    for split, file in files.items():
        tokens = []
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                for word in [*line.split(), "<eos>"]:
                    tokens.append(ids[word])
        arrays[split] = np.array(tokens, dtype=np.int32)
    return arrays


def load(runs: str | None) -> corpora.Corpus:
    """As the library does it, with its cache in ``runs``, or with none."""
    own = os.environ.get("PAPERLIB_RUNS")
    with tempfile.TemporaryDirectory() as empty:
        os.environ["PAPERLIB_RUNS"] = runs or empty
        try:
            return corpora.load(NAME)
        finally:
            os.environ.pop("PAPERLIB_RUNS")
            if own is not None:
                os.environ["PAPERLIB_RUNS"] = own


def data() -> Path | None:
    """The folder of the corpus."""
    places = [paths.PROJECT / "data"]
    if given := os.environ.get("PAPERLIB_DATA"):
        places.insert(0, Path(given).expanduser())
    return next((place / NAME for place in places if (place / NAME).is_dir()), None)


def loading(cached: bool) -> Case:
    """The whole corpus, ready to be trained on."""
    folder = data()
    runs = tempfile.TemporaryDirectory() if cached else None  # as long as the case is there

    def ours() -> corpora.Corpus:
        return load(runs and runs.name)

    loaded = ours()
    tokens = sum(map(len, (loaded.train, loaded.valid, loaded.test)))
    sizes = [(folder / file).stat().st_size for file in KNOWN[NAME].files().values()]
    # Text is read, be it for its checksum alone, and int32 are written.
    work = Work(moved=sum(sizes) + 4 * tokens)
    ways = {"ours": ours, "plain loop": lambda: plain(folder)}
    return Case(ways, work, tokens=tokens, numpy_only=True)


BENCHMARKS = [
    Benchmark(f"loading WikiText-2, {title}", "2.5 M tokens", loading, {"cached": cached}, 3)
    for title, cached in (("cold", False), ("cached", True))
    if data()
]
