"""Processes that end with the one that started them, however it ends: no orphan holds a lock."""

import os
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

SECONDS = 0.5
"""Between two looks at whether the parent is still there."""

PARENT = "PAPERLIB_PARENT"
"""Name of the variable that holds the number of the process that starts others."""


def end_with_parent() -> None:
    """From now on, end as soon as the process that started this one is gone."""
    parent = int(os.environ.get(PARENT, os.getppid()))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS)

    _end_after(watch)


def end_with(connection: Connection) -> None:
    """From now on, end as soon as the other end of ``connection`` is closed."""
    _end_after(lambda: connection.poll(None))


def _end_after(watch: Callable[[], object]) -> None:
    def end() -> None:
        watch()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
