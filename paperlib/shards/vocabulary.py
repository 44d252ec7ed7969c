"""The most frequent words of a text of any size, from the counts of its segments.

Each segment's counts lie in a file of ``partitions`` batches, by a checksum of the word; batch by
batch they are added up over all segments, so that only one partition's words are held at a time.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paperlib.checkpoints import write_atomically
from paperlib.shards.words import END, UNKNOWN

AT_ONCE = 64
"""Segments whose counts are added up at once."""


def total(tables: Sequence[pa.Table]) -> pa.Table:
    """``word`` and ``count`` of all ``tables`` together, one row a word."""
    joined = pa.concat_tables(tables).combine_chunks()
    summed = joined.group_by("word").aggregate([("count", "sum")])
    return summed.rename_columns({"count_sum": "count"})


def save_counts(path: Path, counts: dict[str, int], partitions: int) -> None:
    """Write the counts of words in ``partitions`` batches, atomically."""
    words = list(counts)
    of_word = np.array([zlib.crc32(word.encode()) % partitions for word in words], dtype=np.int64)
    numbers = pa.array(counts.values(), pa.int64())
    table = pa.table({"word": pa.array(words, pa.large_string()), "count": numbers})
    table = table.take(np.argsort(of_word, kind="stable")).combine_chunks()
    ends = np.cumsum(np.bincount(of_word, minlength=partitions))
    empty = pa.RecordBatch.from_pylist([], table.schema)

    def write(file: Path) -> None:
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            for start, end in zip([0, *ends[:-1]], ends, strict=True):
                rows = table.slice(start, end - start)
                writer.write_batch(rows.to_batches()[0] if len(rows) else empty)

    write_atomically(path, write)


def most_frequent(files: Sequence[Path], size: int, partitions: int) -> list[str]:
    """The ``size`` most frequent words; of equally frequent ones, the first by their letters."""
    best = None
    for number in range(partitions):
        summed = None
        for start in range(0, len(files), AT_ONCE):
            few = [_partition(file, number) for file in files[start : start + AT_ONCE]]
            summed = total([*few, *([] if summed is None else [summed])])
        candidates = summed if best is None else pa.concat_tables([best, summed])
        order = [("count", "descending"), ("word", "ascending")]
        best = candidates.take(pc.sort_indices(candidates, sort_keys=order)[:size])
    return best["word"].to_pylist()


def vocabulary_of(files: Sequence[Path], size: int, partitions: int) -> list[str]:
    """``size`` words by id: ``END``, ``UNKNOWN`` and the most frequent ones."""
    special = (END, UNKNOWN)
    frequent = most_frequent(files, size + len(special), partitions)
    others = [word for word in frequent if word not in special]
    return [*special, *others[: size - len(special)]]


def _partition(file: Path, number: int) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        return pa.Table.from_batches([pa.ipc.open_file(source).get_batch(number)])
