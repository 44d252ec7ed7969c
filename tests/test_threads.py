"""How many threads compute: as many as are allowed."""

import threading

import numpy as np
import pytest

from paperlib import threads


@pytest.mark.parametrize(
    ("given", "number"), [("3", 3), ("16", 16), ("0", 1), ("", 12), ("2,1", 12), (None, 12)]
)
def test_allowed_are_those_of_the_variable_or_else_the_cores(given, number, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given or "")
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(threads, "cores", lambda: 12)
    assert threads.allowed() == number


@pytest.mark.parametrize(("given", "number"), [("1", 1), ("2", 2), ("16", 8)])
def test_blocks_are_filled_by_as_many_threads_as_are_allowed(given, number, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(threads, "cores", lambda: 3)
    filled, together = np.zeros(16), threading.Barrier(number)

    def fill(rows):
        together.wait(timeout=10)  # so that no thread is left without work
        filled[rows] = threading.get_ident()

    threads.in_blocks(fill, 16, 1)
    assert len(set(filled)) == number
