"""Progress bars for terminal and notebook."""

from collections.abc import Iterable

from tqdm.auto import tqdm


def bar(iterable: Iterable | None = None, *, total: int | None = None, title: str, **options):
    """A bar with remaining time, on standard error in a terminal, as a widget in a notebook."""
    return tqdm(iterable, total=total, desc=title, dynamic_ncols=True, mininterval=0.5, **options)
