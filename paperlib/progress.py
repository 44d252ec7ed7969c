"""Progress bars for terminal and notebook."""

import os
from collections.abc import Iterable

from tqdm.auto import tqdm


def bar(iterable: Iterable | None = None, *, total: int | None = None, title: str, **options):
    """A bar with remaining time, on standard error in a terminal, as a widget in a notebook.

    Trainings that run side by side each have a line of their own, numbered from 0 on by
    ``PAPERLIB_BAR_LINE``; only on the first one do finished bars stay. A negative number is no bar.
    """
    line = int(os.environ.get("PAPERLIB_BAR_LINE", "0"))
    options |= {"position": line, "leave": line == 0, "disable": line < 0}
    return tqdm(iterable, total=total, desc=title, dynamic_ncols=True, mininterval=0.5, **options)
