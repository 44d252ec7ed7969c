"""Tasks whose steps a GPU replays, each made anew with the same weights and text."""

import numpy as np
import torch

from paperlib import settings, stream_tasks
from paperlib.corpora import InOnePart
from paperlib.models import AWDLSTM, LSTM
from paperlib.network import Dropout, Network
from paperlib.tasks import DiscriminatorTask, FinetuningTask, LanguageModelTask, Split

WORDS = 20
SENTENCES = settings.Training(learning_rate=1.0, batch_size=4, clip=1.0, max_epochs=2)
STREAMS = settings.StreamTraining(learning_rate=1.0, batch_size=4, bptt=7, clip=1.0, max_epochs=3)
DROPOUT = Dropout(embedding=0.1, input=0.2, hidden=0.2, output=0.2, latent=0.2, weight=0.3)
HEADS = {
    "mos": Network(
        head="mos", embedding=8, hidden=(8, 6), experts=(0, 3), dropout=DROPOUT, temporal=1.0
    ),
    "doc": Network(
        head="doc", embedding=8, hidden=(8, 6), experts=(2, 3), dropout=DROPOUT, balance=0.01
    ),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


class OwnText(InOnePart):
    eos, n_words = 0, WORDS

    def __init__(self):
        rng = np.random.default_rng(0)
        self.train, self.valid = rng.integers(WORDS, size=400), rng.integers(WORDS, size=50)


def of_sentences(kind, mixed=False, device="cuda"):
    """With a last batch that is smaller than the others."""
    text = torch.randint(WORDS, (30, 5), generator=generator()).to(device)
    shape = settings.Model(embedding=8, hidden=8, layers=2, init_range=0.1)
    model, *others = (LSTM(WORDS, shape, generator(seed)).to(device) for seed in range(3))
    task, names = {
        "language model": (LanguageModelTask, ()),
        "discriminator": (DiscriminatorTask, ("q0",)),
        "fine-tuning": (FinetuningTask, ("q0", "discriminator")),
        "exact sum": (FinetuningTask, ("q0", "discriminator")),
    }[kind]
    options = dict(zip(names, others, strict=False)) | {"mixed": mixed}
    if kind == "exact sum":
        options["second_term"] = settings.SecondTerm(estimate="sum")
    return task(kind, model, Split(text, text[:4]), seed=0, **options), SENTENCES


def of_streams(kind, head, precision="float32", device="cuda", **changes):
    model, *others = (AWDLSTM(WORDS, HEADS[head], generator(seed)).to(device) for seed in range(3))
    task, names = {
        "language model": (stream_tasks.LanguageModelStreams, ()),
        "discriminator": (stream_tasks.DiscriminatorStreams, ("q0",)),
        "fine-tuning": (stream_tasks.FinetuningStreams, ("q0", "discriminator")),
        "exact sum": (stream_tasks.FinetuningStreams, ("q0", "discriminator")),
    }[kind]
    frozen = dict(zip(names, others, strict=False))
    if kind == "exact sum":
        frozen["second_term"] = settings.SecondTerm(estimate="sum")
    own = STREAMS.model_copy(update={"precision": precision} | changes)
    return task(kind, model, OwnText(), own, seed=0, **frozen), own


KINDS = ["language model", "discriminator", "fine-tuning"]
IN_FLOAT32 = [
    *((of_sentences, kind) for kind in (*KINDS, "exact sum")),
    *((of_streams, kind, head) for kind in (*KINDS, "exact sum") for head in HEADS),
]
CASES = [
    *IN_FLOAT32,
    *((of_sentences, kind, True) for kind in KINDS),
    *((of_streams, kind, "mos", "mixed") for kind in KINDS),
]


def name_of(case):
    return " ".join(map(str, (case[0].__name__, *case[1:])))
