"""The most frequent words of a text of any size, from the counts of its drafts.

The counts of a draft lie in a file, in partitions by a checksum of the word. ``FAN_IN`` files are
merged into one, partition by partition, and those again, so that each file is opened once, and only
one partition of each of these few files is held at a time. What is merged has as many times more
partitions as it may have words.
"""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from paperlib.files import write_atomically
from paperlib.shards.words import END, UNKNOWN

FAN_IN = 32
"""Files that are merged into one."""

FIRST, MOST = 32, 4096
"""Partitions of a draft's counts, and the most there are; powers of two."""

AT_ONCE = 100_000
"""Words whose checksums are computed at once."""


def counts_of(words: pa.Array, counts: np.ndarray) -> pa.Table:
    """``word``, ``key`` (its checksum) and ``count``, without those that do not occur."""
    words, counts = words.filter(pa.array(counts > 0)), counts[counts > 0]
    keys = np.empty(len(words), np.uint32)
    for start in range(0, len(words), AT_ONCE):
        some = words[start : start + AT_ONCE].to_pylist()
        keys[start : start + AT_ONCE] = [zlib.crc32(word.encode()) for word in some]
    return pa.table({"word": words, "key": keys, "count": counts})


def save_counts(path: Path, counts: pa.Table) -> None:
    """Write the counts of a draft, atomically."""
    write_atomically(path, lambda file: _write(file, [counts], 1, FIRST))


def merge(files: Sequence[Path], path: Path, partitions: int) -> None:
    """Add up counts from files of so many partitions, and write them to ``path``, atomically."""
    tables = _partitions(files, partitions)
    write_atomically(path, lambda file: _write(file, tables, partitions, more(partitions)))


def more(partitions: int) -> int:
    """How many partitions files have that are merged of files of so many."""
    return min(MOST, partitions * FAN_IN)


def _write(path: Path, tables, partitions: int, wanted: int) -> None:
    """Each partition's table, cut into its share of the ``wanted`` partitions."""
    each = wanted // partitions
    with pa.OSFile(str(path), "wb") as sink:
        writer = None
        for number, table in enumerate(tables):
            table = table.take(np.argsort(table["key"].to_numpy())).combine_chunks()
            keys = table["key"].to_numpy()
            first = number * each + np.arange(each, dtype=np.uint64)
            starts = np.searchsorted(keys, first * np.uint64(2**32 // wanted))
            writer = writer or pa.ipc.new_file(sink, table.schema)
            for start, end in zip(starts, [*starts[1:], len(table)], strict=True):
                writer.write_batch(_batch(table.slice(start, end - start)))
        writer.close()


def _batch(table: pa.Table) -> pa.RecordBatch:
    return (table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)])[0]


def _partitions(files: Sequence[Path], partitions: int):
    """The counts of all files together, partition by partition."""
    readers = [pa.ipc.open_file(pa.OSFile(str(file))) for file in files]
    for number in range(partitions):
        few = [reader.get_batch(number) for reader in readers]
        joined = pa.Table.from_batches(few)
        summed = joined.group_by("word").aggregate([("key", "min"), ("count", "sum")])
        yield summed.rename_columns(["word", "key", "count"])


def most_frequent(files: Sequence[Path], size: int, partitions: int) -> list[str]:
    """The ``size`` most frequent words; of equally frequent ones, the first by their letters."""
    order = [("count", "descending"), ("word", "ascending")]

    def cut(best: pa.Table) -> pa.Table:
        return best.take(pc.sort_indices(best, sort_keys=order)[:size])

    best, least = None, 0
    for summed in _partitions(files, partitions):
        summed = summed.filter(pc.greater_equal(summed["count"], least))
        best = summed if best is None else pa.concat_tables([best, summed])
        if len(best) > 4 * size:  # sorting takes longer than adding up
            best = cut(best)
            least = best["count"][-1]
    return cut(best)["word"].to_pylist()


def vocabulary_of(files: Sequence[Path], partitions: int, size: int) -> list[str]:
    """``size`` words by id: ``END``, ``UNKNOWN`` and the most frequent ones."""
    special = (END, UNKNOWN)
    frequent = most_frequent(files, size + len(special), partitions)
    others = [word for word in frequent if word not in special]
    return [*special, *others[: size - len(special)]]
