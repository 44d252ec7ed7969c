"""How fast section 4.3 trains in how many processes: measured here, and a model of the cost.

The model of a step of all processes: each works on its streams, then all exchange their gradients.

    seconds = work of its own tokens + bytes sent / rate of the link

With P parameters in float32 and N processes, each sends 2 (N − 1)/N · 4 P bytes (ring all-reduce).
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from paperlib import distributed, hardware, settings, stages
from paperlib.checkpoints import load_json
from paperlib.large_study import LargeStudy
from paperlib.models.differentiated import block_sizes
from paperlib.network import Network
from paperlib.settings import Profile, StreamTraining
from paperlib.stream_tasks import LanguageModelStreams
from paperlib.threads import cores
from paperlib.training import Trainer

WARM_UP, STEPS = 2, 10
"""Steps before those that are timed, and these."""

STREAMS = 64
"""Streams of a batch whose steps are timed."""

BYTES_A_WORD = 5
"""Of English text, with spaces and signs: 20 MB are some 4 million tokens."""


def bytes_sent(parameters: int, number: int) -> float:
    """What each of ``number`` processes sends in a step."""
    return 2 * (number - 1) / number * 4 * parameters


def operations(network: Network, words: Sequence[int]) -> float:
    """Floating-point operations a token, forward and backward: those of the matrix products.

    ``words`` are the numbers of words of the blocks of the differentiated softmax.
    """
    inputs, products = network.embedding, 0
    for units in network.hidden:
        products += 4 * units * (inputs + units)
        inputs = units
    for block, size in zip(network.blocks, words, strict=True):
        products += block.units * size
        if network.projected:
            products += block.units * inputs
    return 3 * 2 * products


def throughput(profile: Profile, streams: int | None = None) -> dict:
    """Time the steps of the language model, in this group of processes; ``streams`` is the batch.

    Returns words a second of all processes and seconds of a step, with the exchange of gradients
    (``seconds``) and without (``work``), and of an exchange by itself (``exchange``).
    """
    study = LargeStudy(profile)
    training = study.settings.language_model
    training = training.model_copy(update={"batch_size": streams or training.batch_size})
    hardware.keep_memory()
    with_exchange, without = (_Timed(study, training, exchange) for exchange in (True, False))
    for number in range(WARM_UP + STEPS):
        both = (with_exchange, without)
        for one in both if number % 2 else reversed(both):  # the second finds a warmer cache
            one.step(number)
    parameters = sum(parameter.numel() for parameter in study.new_model().parameters())
    return {
        "processes": distributed.size(),
        "streams": training.batch_size,
        "parameters": parameters,
        "words_per_second": with_exchange.tokens / with_exchange.seconds,
        "seconds": with_exchange.seconds / STEPS,
        "work": without.seconds / STEPS,
        "exchange": _exchange(parameters) if distributed.size() > 1 else 0.0,
    }


class _Timed:
    """A training whose steps are timed, but for the first ones."""

    def __init__(self, study: LargeStudy, training: StreamTraining, exchange: bool):
        model = study.new_model()
        self._task = LanguageModelStreams("throughput", model, study.text, training, seed=0)
        self._task.gradients = distributed.Gradients(model, exchange)
        self._trainer = Trainer(self._task, training, Path("nothing is saved"))
        self._batches = self._task.batches(0, training.batch_size)
        self.seconds, self.tokens = 0.0, 0
        model.train()

    def step(self, number: int) -> None:
        """The next one; begins again where the text has ended."""
        batch = self._batches[number % len(self._batches)]
        started = _now()
        self._trainer.step(batch)
        if number >= WARM_UP:
            self.seconds += _now() - started
            self.tokens += self._task.tokens(batch)


def _exchange(parameters: int) -> float:
    values = torch.zeros(parameters, device=hardware.device())
    distributed.total(values)
    started = _now()
    for _ in range(STEPS):
        distributed.total(values)
    return (_now() - started) / STEPS


def _now() -> float:
    """When all processes are here and a GPU has done what it was told."""
    distributed.wait()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measured(profile: str, numbers: Sequence[int], streams: int = STREAMS) -> pd.DataFrame:
    """:func:`throughput` with each number of processes, and what the model says of it.

    Each is measured in processes of its own with one thread each, once, and then found again.
    """
    table = pd.DataFrame([_measured(profile, number, streams) for number in numbers])
    table["predicted"] = table["words_per_second"] * table["seconds"]
    table["predicted"] /= table["work"] + table["exchange"]
    pairs = zip(table["parameters"], table["processes"], strict=True)
    table["bytes_sent"] = [bytes_sent(*pair) for pair in pairs]
    return table


def _measured(profile: str, number: int, streams: int) -> dict:
    large = settings.load(profile).large.model_dump(mode="json")
    key = {"large": large, "processes": number, "streams": streams, "machine": hardware.describe()}

    def compute(folder: Path) -> None:
        command = [sys.executable, "-m", "paperlib", "throughput", "--profile", profile]
        options = {"streams": streams, "processes": number, "output": folder / "found.json"}
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    return load_json(stages.once("large_throughput", key, compute) / "found.json")


@dataclass(frozen=True)
class Processor:
    """What works on a process's share: floating-point operations a second, and bytes a second that
    it sends."""

    name: str
    operations: float
    link: float


def processors_here() -> list[int]:
    """1, 2, 4, … up to the GPUs of this machine, or else its cores."""
    there_are = torch.cuda.device_count() or cores()
    return [2**power for power in range(there_are.bit_length())]


def core(profile: str, table: pd.DataFrame) -> Processor:
    """One process of this machine, as :func:`measured` found it."""
    network, words = _network(profile)
    alone, most = table.iloc[0], table.iloc[-1]
    rate = alone["words_per_second"] * operations(network, words)
    link = most["bytes_sent"] / most["exchange"] if most["exchange"] else float("inf")
    return Processor("process of this machine", rate, link)


def cost(text_bytes: float, number: int, processor: Processor, profile: str = "paper") -> dict:
    """What one pass over a text takes by the model, with ``STREAMS`` streams a process.

    Memory (bytes) of a process: weights, gradients and best weights, and for each token of a piece
    what the backward pass needs of the layers.
    """
    network, words = _network(profile)
    tokens = STREAMS * settings.load(profile).large.language_model.bptt
    parameters = parameters_of(network, words)
    work = operations(network, words) * tokens / processor.operations
    exchange = bytes_sent(parameters, number) / processor.link
    of_token = network.embedding + sum(10 * units for units in network.hidden)
    words_per_second = tokens * number / (work + exchange)
    return {
        "text_bytes": text_bytes,
        "processes": number,
        "processor": processor.name,
        "words_per_second": words_per_second,
        "bytes_sent": bytes_sent(parameters, number),
        "exchange_share": exchange / (work + exchange),
        "hours": text_bytes / BYTES_A_WORD / words_per_second / 3600,
        "memory": 4 * (3 * parameters + tokens * of_token),
    }


def parameters_of(network: Network, words: Sequence[int]) -> int:
    """Weights and biases of embedding, layers and differentiated softmax."""
    inputs, number = network.embedding, sum(words) * network.embedding
    for units in network.hidden:
        number += 4 * units * (inputs + units + 2)
        inputs = units
    for block, size in zip(network.blocks, words, strict=True):
        number += size * (block.units + 1) + network.projected * inputs * block.units
    return number


def _network(profile: str) -> tuple[Network, list[int]]:
    large = settings.load(profile).large
    return large.network, block_sizes(large.words, large.network)
