"""A folder of text, plain and compressed, for the tests of shards."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa

PLAIN = {"tokens": "whitespace", "part_bytes": 3000, "vocabulary": 60}


def random_text(seed, n_documents=80):
    """Documents of a few lines, in a vocabulary where some words are rare."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n_documents):
        lines = [
            " ".join(f"w{min(rng.geometric(0.05), 150)}é" for _ in range(rng.integers(1, 9)))
            for _ in range(rng.integers(1, 5))
        ]
        made.append("\n".join(lines))
    return "\n\n".join(made) + "\n"


def write_folder(folder: Path) -> Path:
    """Plain and compressed files in two levels."""
    below = folder / "below"
    below.mkdir(parents=True)
    (folder / "a.txt").write_text(random_text(0, 200), encoding="utf-8")
    (below / "b.gz").write_bytes(gzip.compress(random_text(1).encode()))
    with pa.CompressedOutputStream(str(below / "c.zst"), "zstd") as file:
        file.write(random_text(2).encode())
    return folder


def read(shards, split):
    return np.concatenate([part.ids() for part in shards.parts(split)])
