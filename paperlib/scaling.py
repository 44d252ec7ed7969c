"""How fast section 4.3 trains in how many processes: measured here, and a model of the cost.

The model of a step of N processes: each works on its streams, all exchange their gradients, and
each updates all weights.

    seconds = (work of all streams / N + update) · crowd + bytes sent / rate of the link

With P parameters in float32, each sends 2 (N − 1)/N · 4 P bytes (ring all-reduce). ``crowd`` is N
times the cores that one process by itself keeps busy, over those there are, and 1 at least.
"""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from paperlib import distributed, hardware, settings, stages, threads
from paperlib.checkpoints import load_json
from paperlib.large_study import LargeStudy
from paperlib.models.differentiated import block_sizes
from paperlib.models.fused import KEEP
from paperlib.network import Network
from paperlib.settings import Profile, StreamTraining
from paperlib.stream_tasks import DiscriminatorStreams, LanguageModelStreams
from paperlib.threads import cores
from paperlib.training import Trainer, TrainingError

WARM_UP, STEPS = 2, 10
"""Steps before those that are timed, and these."""

STREAMS = 64
"""Streams of a batch whose steps are timed: those of the paper's profile."""

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
    (``seconds``) and without (``work``), of the update of the weights in it (``update``), and of an
    exchange by itself (``exchange``); ``busy`` is how many cores one process keeps busy at work.
    ``memory`` is the peak (bytes) of this process in a step of the discriminator, on ``tokens``
    tokens, of which it held ``base`` before there were models. ``n_words`` are the text's.
    """
    study = LargeStudy(profile)
    training = study.settings.language_model
    training = training.model_copy(update={"batch_size": streams or training.batch_size})
    memory = _memory_of_a_step(study, training)
    hardware.keep_memory()
    with_exchange, without = (_Timed(study, training, exchange) for exchange in (True, False))
    for number in range(WARM_UP + STEPS):
        both = (with_exchange, without)
        for one in both if number % 2 else reversed(both):  # the second finds a warmer cache
            one.step(number)
    parameters = sum(parameter.numel() for parameter in study.new_model().parameters())
    return {
        "n_words": study.text.n_words,
        "processes": distributed.size(),
        "streams": training.batch_size,
        "parameters": parameters,
        "words_per_second": with_exchange.tokens / with_exchange.seconds,
        "seconds": with_exchange.seconds / STEPS,
        "work": without.seconds / STEPS,
        "update": without.update(),
        "busy": without.busy / without.seconds,
        "exchange": _exchange(parameters) if distributed.size() > 1 else 0.0,
        "mixed": hardware.precision(training.precision) == "mixed",
    } | memory


def _memory_of_a_step(study: LargeStudy, training: StreamTraining) -> dict:
    base = _peak_memory()
    q0, model = (study.new_model(stream) for stream in (0, 1))
    task = DiscriminatorStreams("memory", model, study.text, training, seed=0, q0=q0)
    trainer = Trainer(task, training, None)
    batches = task.batches(0, training.batch_size)[:WARM_UP]
    for batch in batches:
        trainer.step(batch)
    own = distributed.share(training.batch_size)
    longest = max(batch.length for batch in batches) * (own.stop - own.start)
    return {"base": base, "memory": _peak_memory(), "tokens": longest}


def _peak_memory() -> int:
    """The most bytes that this process has held, on a GPU if it works there."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class _Timed:
    """A training whose steps are timed, but for the first ones."""

    def __init__(self, study: LargeStudy, training: StreamTraining, exchange: bool):
        model = study.new_model()
        self._task = LanguageModelStreams("throughput", model, study.text, training, seed=0)
        self._task.gradients = distributed.Gradients(model, exchange)
        self._trainer = Trainer(self._task, training, None)
        self._batches = self._task.batches(0, training.batch_size)
        self.seconds, self.busy, self.tokens = 0.0, 0.0, 0
        model.train()

    def step(self, number: int) -> None:
        """The next one; begins again where the text has ended."""
        batch = self._batches[number % len(self._batches)]
        started, busy = _now(), time.process_time()
        self._trainer.step(batch)
        busy = time.process_time() - busy  # the wait for others is no work
        if number >= WARM_UP:
            self.seconds += _now() - started
            self.busy += busy
            self.tokens += self._task.tokens(batch)

    def update(self) -> float:
        """Seconds of clipping and of the optimiser."""
        started = _now()
        for _ in range(STEPS):
            nn.utils.clip_grad_norm_(self._task.model.parameters(), self._trainer.settings.clip)
            self._trainer.optimizer.step()
        return (_now() - started) / STEPS


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
    ``predicted`` are words a second by the model: from the first row, where one process works by
    itself, and the exchange; ``error`` is its error, relative. ``predicted_memory`` is that of
    :func:`memory`, and what was there before.
    """
    table = pd.DataFrame([_measured(profile, number, streams) for number in numbers])
    alone, number = table.iloc[0], table["processes"]
    processors = torch.cuda.device_count() or cores()
    crowd = np.maximum(1, number * alone["busy"] / processors)
    update = min(alone["update"], alone["work"])
    seconds = ((alone["work"] - update) / number + update) * crowd + table["exchange"]
    table["predicted"] = table["words_per_second"] * table["seconds"] / seconds
    table["error"] = table["predicted"] / table["words_per_second"] - 1
    network, words = _network(profile, alone["n_words"])
    table["predicted_memory"] = [
        row.base + memory(network, words, row.tokens, mixed=row.mixed) for row in table.itertuples()
    ]
    pairs = zip(table["parameters"], number, strict=True)
    table["bytes_sent"] = [bytes_sent(*pair) for pair in pairs]
    return table


def in_words(table: pd.DataFrame) -> str:
    """What a table of :func:`measured` shows."""
    one, most = table.iloc[0], table.iloc[-1]
    there = torch.cuda.device_count() or cores()
    busy = f"One process by itself keeps {one['busy']:.1f} of {there} processors busy"
    if len(table) == 1:
        return f"{busy}."
    number = int(most["processes"])
    gain = most["words_per_second"] / one["words_per_second"]
    return (
        f"{busy}; each of {number} together, {most['busy']:.1f}. They train {gain:.2f} times as "
        f"many words a second, of which the model's prediction is {most['error']:+.0%} off. The "
        f"exchange takes {most['exchange'] / most['seconds']:.0%} of a step, and the update, which "
        f"each does for itself, {most['update'] / most['seconds']:.0%}."
    )


def _measured(profile: str, number: int, streams: int) -> dict:
    large = settings.load(profile).large.model_dump(mode="json")
    key = {"large": large, "processes": number, "streams": streams, "machine": hardware.describe()}
    # What was found may be of another text than the one that is there now.
    key["text"] = LargeStudy(settings.load(profile)).text_key

    def compute(folder: Path) -> None:
        command = [sys.executable, "-m", "paperlib", "throughput", "--profile", profile]
        options = {"streams": streams, "processes": number, "output": folder / "found.json"}
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        environment = os.environ | threads.settings(1)
        run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
        if run.returncode:
            sys.stderr.write(run.stderr)
            said = run.stderr.splitlines()[-1:] if run.returncode > 0 else []
            why = said[0].removesuffix(".") if said else f"exit code {run.returncode}"
            raise TrainingError(
                f"the steps of section 4.3 cannot be timed (--processes {number}): {why}"
            )

    return load_json(stages.once("large_timing", key, compute) / "found.json")


@dataclass(frozen=True)
class Processor:
    """What works on a process's share: floating-point operations a second, bytes a second that it
    sends, and seconds of the update for each parameter."""

    name: str
    operations: float
    link: float
    update: float = 0.0


def processors_here() -> list[int]:
    """1, 2, 4, … up to the GPUs of this machine, or else its cores."""
    there_are = torch.cuda.device_count() or cores()
    return [2**power for power in range(there_are.bit_length())]


def core(profile: str, table: pd.DataFrame) -> Processor:
    """One process of this machine by itself, as :func:`measured` found it."""
    alone, most = table.iloc[0], table.iloc[-1]
    network, words = _network(profile, alone["n_words"])
    update = min(alone["update"], alone["work"])
    tokens = alone["words_per_second"] * alone["seconds"]
    rate = tokens * operations(network, words) / max(alone["work"] - update, 1e-9)
    link = most["bytes_sent"] / most["exchange"] if most["exchange"] else float("inf")
    return Processor("process of this machine", rate, link, update / alone["parameters"])


def cost(
    text_bytes: float,
    number: int,
    processor: Processor,
    streams: int | None = None,
    profile: str = "paper",
) -> dict:
    """What one pass over a text takes by the model, in a processor of its own for each process.

    ``streams`` are those of all processes, by default ``STREAMS`` for each. ``memory`` (bytes) is
    that of a process of the discriminator's training, the largest.

    Raises ``ValueError`` where the training would refuse them: processes without a stream, or
    streams without two tokens of a part.
    """
    large = settings.load(profile).large
    network, words = _network(profile)
    streams = STREAMS * number if streams is None else streams
    if not number <= streams <= large.part_bytes / BYTES_A_WORD / 2:
        raise ValueError(f"{number} processes cannot share {streams} streams of a part")
    tokens = streams * large.language_model.bptt
    own = -(-streams // number) * large.language_model.bptt  # of the process with the most
    parameters = parameters_of(network, words)
    work = operations(network, words) * own / processor.operations
    work += processor.update * parameters
    exchange = bytes_sent(parameters, number) / processor.link
    words_per_second = tokens / (work + exchange)
    return {
        "text_bytes": text_bytes,
        "processes": number,
        "processor": processor.name,
        "streams": streams,
        "words_per_second": words_per_second,
        "bytes_sent": bytes_sent(parameters, number),
        "exchange_share": exchange / (work + exchange),
        "hours": text_bytes / BYTES_A_WORD / words_per_second / 3600,
        "memory": memory(network, words, own) + 4 * parameters,  # the best weights
    }


def memory(network: Network, words: Sequence[int], tokens: int, *, mixed: bool = False) -> float:
    """Bytes that a step of the discriminator takes beside what was there, on so many tokens.

    The weights of q_0, and weights and gradients of r; log q_0 of every word and, block by block, a
    copy that the gradient needs; of each block, what the head keeps of its sum over the words, at
    most ``KEEP`` bytes; and what the gradient needs of embedding and layers. Not in it is what a
    process takes for itself and its text, some 0.15 GB.
    """
    kept = sum(min(KEEP, (2 if mixed else 4) * tokens * size) for size in words)
    of_token = network.embedding + sum(10 * units for units in network.hidden)
    weights = 3 * parameters_of(network, words)
    return 4 * (weights + tokens * (2 * sum(words) + of_token)) + kept


def parameters_of(network: Network, words: Sequence[int]) -> int:
    """Weights and biases of embedding, layers and differentiated softmax."""
    inputs, number = network.embedding, sum(words) * network.embedding
    for units in network.hidden:
        number += 4 * units * (inputs + units + 2)
        inputs = units
    for block, size in zip(network.blocks, words, strict=True):
        number += size * (block.units + 1) + network.projected * inputs * block.units
    return number


def _network(profile: str, n_words: int | None = None) -> tuple[Network, list[int]]:
    """The network and the words of its blocks, for so many words or else the profile's."""
    large = settings.load(profile).large
    n_words = large.words if n_words is None else int(n_words)
    return large.network, block_sizes(n_words, large.network)
