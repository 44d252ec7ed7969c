"""Where a result comes from: commit, versions, hardware, seeds, data, wall times."""

import subprocess
from importlib.metadata import version

from paperlib import hardware, paths
from paperlib.checkpoints import load_json
from paperlib.stages import Trained

PACKAGES = ("torch", "numpy", "scipy", "sympy", "mpmath", "matplotlib", "pandas")


def commit() -> str:
    """The checkout's commit, with a ``+`` for uncommitted changes outside ``figures/``."""
    try:
        head = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", ".", ":(exclude)figures")
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return head + ("+" if changed else "")


def training(trained: Trained) -> dict:
    """Wall time, length, best epoch and hardware of one training."""
    done = load_json(trained.folder / "done.json")
    return {
        "stage": f"{trained.folder.parent.name}/{trained.folder.name}",
        "seconds": round(trained.progress.seconds, 1),
        "epochs": trained.progress.epoch,
        "best_epoch": trained.progress.best_epoch,
        "precision": done["key"]["precision"],
        "device": done["hardware"]["device"],
        "processor": done["hardware"]["processor"],
        "torch_threads": done["hardware"]["torch_threads"],
    }


def provenance(profile: str) -> dict:
    """What is the same for all results of one run."""
    return {
        "profile": profile,
        "commit": commit(),
        "packages": {name: version(name) for name in PACKAGES},
        "hardware": hardware.describe(),
    }


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(paths.PROJECT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
