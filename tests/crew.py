"""One of several processes in ``test_distributed``: the language model of section 4.3, smoke's.

``python crew.py PROFILE [STOP]``: with STOP, the process ends without a word after so many steps
over all epochs, a checkpoint behind each of them.
"""

import os
import sys

from paperlib import distributed, settings, training
from paperlib.large_study import LargeStudy

training.CHECKPOINT_EVERY_SECONDS = 0.0


def main(profile: str, stop: str = "0") -> None:
    """Train, or stop."""
    steps = 0
    step = training.Trainer.step

    def counted(trainer, batch):
        nonlocal steps
        if stop != "0" and steps == int(stop):
            distributed.wait()  # the last checkpoint is written
            os._exit(0)
        steps += 1
        step(trainer, batch)

    training.Trainer.step = counted
    with distributed.together():
        _ = LargeStudy(settings.load(profile)).initial


main(*sys.argv[1:])
