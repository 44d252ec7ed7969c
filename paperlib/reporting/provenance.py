"""Where a result comes from: commit, versions, hardware, seeds, data, wall times."""

import re
from collections.abc import Sequence
from importlib.metadata import version

from paperlib import hardware, paths
from paperlib.checkpoints import load_json
from paperlib.stages import DONE, Trained

PACKAGES = ("torch", "numpy", "scipy", "sympy", "mpmath", "matplotlib", "pandas")


def training(trained: Trained) -> dict:
    """Commit, wall time, length, best epoch and hardware of one training."""
    done = load_json(trained.folder / DONE)
    return {
        "stage": trained.address,
        "commit": done.get("commit", "not recorded"),
        "seconds": round(trained.progress.seconds, 1),
        "epochs": trained.progress.epoch,
        "best_epoch": trained.progress.best_epoch,
        "precision": done["key"]["training"]["precision"],
        "device": done["hardware"]["device"],
        "processor": done["hardware"]["processor"],
        "torch_threads": done["hardware"]["torch_threads"],
    }


def without_repeats(trainings: Sequence[dict]) -> list[dict]:
    """Each training once, in their order, where it stands first: different studies share some."""
    found = {}
    for one in trainings:
        found.setdefault(one["stage"], one)
    return list(found.values())


def shortened(commit: str) -> str:
    """The first 8 digits of a commit, with its ``+`` if it has one; other words as they are."""
    is_commit = re.fullmatch(r"[0-9a-f]{40}\+?", commit)
    return f"{commit[:8]}{commit[40:]}" if is_commit else commit


def provenance(profile: str) -> dict:
    """What is the same for all results of one run."""
    return {
        "profile": profile,
        "commit": paths.commit(),
        "packages": {name: version(name) for name in PACKAGES},
        "hardware": hardware.describe(),
    }
