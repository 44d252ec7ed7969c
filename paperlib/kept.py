"""Arrays that take minutes to compute and only depend on a few numbers: kept in ``runs/``."""

import hashlib
import json
from collections.abc import Callable

import numpy as np
from filelock import FileLock

from paperlib import paths
from paperlib.files import save_array, write_atomically


def kept(kind: str, key: list, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """What ``compute`` returns, from the disk where it was computed before.

    ``key`` are the plain values that it depends on. Of several processes that ask for it, one
    computes, and the others wait.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    path = paths.runs() / kind / f"{digest}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            array = compute()
            write_atomically(path, lambda unfinished: save_array(unfinished, array))
    return np.load(path)
