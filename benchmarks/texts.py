"""Running text: training step, evaluation and dynamic evaluation of a mixture of softmaxes.

The alternatives compute all words' probabilities, as the published code does: softmax of every
expert, weighted sum, logarithm; they evaluate one stream of text, and update parameter after
parameter. The text is random words; time does not depend on what they say.
"""

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import Benchmark, Case, Work, precision
from paperlib import hardware, settings
from paperlib.dynamic import dynamic_log_q, gradient_rms
from paperlib.evaluation import perplexity
from paperlib.models import AWDLSTM
from paperlib.stream_tasks import VALIDATION_STREAMS
from paperlib.streams import PIECE, over_tokens

WORDS = 10_000


class Setting:
    """A network of a profile, random text, and everything a step needs."""

    def __init__(self, profile: str, mixed: bool = False):
        experiment = settings.load(profile).corpora["mos_ptb"]
        self.network, self.training = experiment.network, experiment.language_model
        self.device, self.mixed = hardware.device(), mixed
        self.model = AWDLSTM(WORDS, self.network, torch.Generator().manual_seed(0)).to(self.device)

    @property
    def tokens(self) -> int:
        """Tokens of a training step."""
        return self.training.bptt * self.training.batch_size

    def text(self, *shape: int) -> Tensor:
        """Random words."""
        generator = torch.Generator().manual_seed(1)
        return torch.randint(WORDS, shape, generator=generator).to(self.device)

    def work(self, tokens: int, passes: int) -> Work:
        """Products of ``passes`` passes (one forward, three with gradients) over some tokens."""
        sizes = (self.network.embedding, *self.network.hidden)
        recurrent = sum(4 * units * (inputs + units) for inputs, units in itertools.pairwise(sizes))
        experts = sum(self.network.experts)
        latents = experts * self.network.embedding * self.network.hidden[-1]
        output = experts * self.network.embedding * WORDS
        return Work(2 * passes * tokens * (recurrent + latents + output))

    def log_q_of(self, encoded, target: Tensor) -> Tensor:
        """As the published code computes it."""
        latents, log_pi = encoded.head
        softmax = F.linear(latents, self.model.embedding, self.model.head.bias).softmax(-1)
        q = (softmax * log_pi.exp().unsqueeze(-1)).sum(2)
        return q.add(1e-8).log().gather(-1, target.unsqueeze(-1)).squeeze(-1)


def training_step(profile: str = "quick", mixed: bool = False) -> Case:
    """Cross-entropy with dropout: encode, head, gradients, clipping, update."""
    setting = Setting(profile, mixed)
    training, model = setting.training, setting.model
    words = setting.text(training.bptt + 1, training.batch_size)
    state = model.start(training.batch_size)
    dropout = torch.Generator(setting.device).manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, weight_decay=training.weight_decay)

    def encode(mixed: bool):
        with torch.autocast(setting.device.type, torch.bfloat16, enabled=mixed):
            return model.encode(words[:-1], state, dropout)[0]

    def ours() -> float:
        optimizer.zero_grad()
        with hardware.rounded_products(mixed):
            encoded = encode(mixed)
            loss = -model.log_q_of(encoded, words[1:]).mean()
            (loss + model.regularisation(encoded)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        return loss.item()

    def published(mixed: bool) -> float:
        model.zero_grad()
        encoded = encode(mixed)
        with precision(mixed):
            loss = -setting.log_q_of(encoded, words[1:]).mean()
        (loss + model.regularisation(encoded)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        for parameter in model.parameters():
            parameter.data.add_(parameter.grad, alpha=-1e-3)
        return loss.item()

    ways = {"ours": ours, "published formulation": lambda: published(mixed)}
    if mixed:
        ways["published formulation, float32"] = lambda: published(False)
    return Case(ways, setting.work(setting.tokens, passes=3), mixed)


def evaluation(profile: str = "quick", tokens: int = 10_000) -> Case:
    """Perplexity of a text, every token once."""
    setting = Setting(profile)
    model, text = setting.model.eval(), setting.text(tokens)

    def ours() -> float:
        with torch.no_grad():
            return perplexity(over_tokens([model], text, 0, model.log_q_of, VALIDATION_STREAMS))

    @torch.no_grad()
    def published() -> float:
        history, total, state = F.pad(text[:-1], (1, 0)), 0.0, model.start(1)
        for start in range(0, len(text), PIECE):
            encoded, state = model.encode(history[start : start + PIECE, None], state)
            target = text[start : start + PIECE, None]
            total += setting.log_q_of(encoded, target).sum().item()
        return total / len(text)

    ways = {"ours": ours, "published loop, one stream": published}
    return Case(ways, setting.work(tokens, passes=1))


def dynamic_evaluation(profile: str = "quick", tokens: int = 500) -> Case:
    """Dynamic evaluation of a text in pieces of five words."""
    setting = Setting(profile)
    text, update = setting.text(tokens), settings.DynamicUpdate()
    statistics = gradient_rms(setting.model, setting.text(20, 10), update.bptt, "statistics")

    def ours() -> Tensor:
        return dynamic_log_q(setting.model, text, 0, statistics, update, "ours")

    def published() -> float:
        model = copy.deepcopy(setting.model)
        own, setting.model = setting.model, model
        trained = [parameter.data.clone() for parameter in model.parameters()]
        mean = sum(value.sum() for value in statistics) / sum(map(Tensor.numel, statistics))
        history, total, state = F.pad(text[:-1], (1, 0)), 0.0, model.start(1)
        for start in range(0, tokens, update.bptt):
            model.zero_grad()
            encoded, state = model.encode(history[start : start + update.bptt, None], state)
            log_q = setting.log_q_of(encoded, text[start : start + update.bptt, None])
            (-log_q.mean()).backward()
            total += log_q.sum().item()
            for parameter, start_value, rms in zip(
                model.parameters(), trained, statistics, strict=True
            ):
                decay = (update.decay * rms / mean).clamp(max=1)
                step = update.learning_rate * parameter.grad / (rms + update.epsilon)
                parameter.data = parameter.data + decay * (start_value - parameter.data) - step
        setting.model = own
        return total

    parameters = sum(parameter.numel() for parameter in setting.model.parameters())
    work = setting.work(tokens, passes=3)
    # Every update reads gradient, weight, trained weight, decay and scale, and writes the weight.
    moved = 4 * 6 * parameters * -(-tokens // update.bptt)
    ways = {"ours": ours, "published loop": published}
    return Case(ways, Work(work.operations, moved))


def _shape(profile: str) -> str:
    setting = Setting(profile)
    experts, hidden = sum(setting.network.experts), "-".join(map(str, setting.network.hidden))
    return f"{setting.tokens} tokens, {experts} experts, units {hidden} ({profile})"


BENCHMARKS = [
    *(
        Benchmark(
            f"mixture training step, {'mixed precision' if mixed else 'float32'}",
            _shape(profile),
            training_step,
            {"profile": profile, "mixed": mixed},
        )
        for profile in ("quick", "overnight")
        for mixed in ((False, True) if hardware.precision("auto") == "mixed" else (False,))
    ),
    Benchmark("evaluation", "10 000 tokens (quick)", evaluation, repeats=3),
    Benchmark("evaluation", "10 000 tokens (overnight)", evaluation, {"profile": "overnight"}, 3),
    Benchmark("dynamic evaluation", "500 tokens (quick)", dynamic_evaluation, repeats=3),
]
