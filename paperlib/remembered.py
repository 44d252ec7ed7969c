"""What is made once and remembered, for as long as something lives, and what is made anew."""

from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


class Remembered:
    """Called with a ``key`` and ``make``, returns what ``make()`` returned the first time."""

    def __init__(self):
        self._made = {}

    def __call__(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


def anew(key: Hashable, make: Callable[[], T]) -> T:
    """The same without a memory, for what would fill it."""
    return make()
