"""Loading and encoding a corpus, beside a plain loop over its lines.

The plain loop reads each line twice, once for the vocabulary and once for the ids, as language
model code usually does. ``cold`` has no cache of ours, ``cached`` has one; both check SHA-256.
WikiText-2 from the folder in PAPERLIB_DATA; without it there is nothing to measure.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.harness import Benchmark, Case
from paperlib import corpora
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


def loading(cached: bool) -> Case:
    """The whole corpus, ready to be trained on."""
    folder = Path(os.environ["PAPERLIB_DATA"]).expanduser() / NAME
    runs = tempfile.mkdtemp() if cached else None
    return Case({"ours": lambda: load(runs), "plain loop": lambda: plain(folder)})


BENCHMARKS = [
    Benchmark(f"loading WikiText-2, {title}", "2.5 M tokens", loading, {"cached": cached}, 3)
    for title, cached in (("cold", False), ("cached", True))
    if (Path(os.environ.get("PAPERLIB_DATA", "")) / NAME).is_dir()
]
