"""Dynamic evaluation (Krause et al., 2018): the model goes on learning from the text it has read.

After each piece of text has been counted, the weights take a step against its gradient, scaled by
the root mean square of the gradients over the training text, and decay towards the trained weights.
"""

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from paperlib.captured import Replayed, can_replay
from paperlib.models.stream import StreamModel
from paperlib.progress import bar
from paperlib.settings import DynamicUpdate


def gradient_rms(model: StreamModel, words: Tensor, bptt: int, title: str) -> list[Tensor]:
    """Root mean square of each parameter's gradient over pieces of ``bptt`` steps.

    ``words`` ``(n, B)`` is the training text in streams; the gradients are those of the mean
    cross-entropy of a piece, without dropout. Returns one tensor a parameter.
    """
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    squares = [torch.zeros_like(parameter) for parameter in parameters]

    def add(gradients: Sequence[Tensor]) -> None:
        torch._foreach_addcmul_(squares, gradients, gradients)

    count = sum(1 for _ in _pieces(model, words, bptt, title, add))
    return [(square / count).sqrt() for square in squares]


def dynamic_log_q(
    model: StreamModel,
    tokens: Tensor,
    eos: int,
    rms: list[Tensor],
    update: DynamicUpdate,
    title: str,
) -> Tensor:
    """``(N,)`` log-probabilities of all ``tokens`` under dynamic evaluation, nats.

    The first token follows an ``eos``. With g the gradient of a piece's mean cross-entropy and R
    its ``rms``, each weight θ moves after the piece by

        −η g / (R + ε) + min(λ R / mean R, 1) (θ_trained − θ),

    the mean being that of the parameters' means, as in the published code; η, λ and ε are
    ``update``'s ``learning_rate``, ``decay`` and ``epsilon``. ``model`` itself stays as it is.
    """
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    trained = [parameter.detach().clone() for parameter in parameters]
    mean = sum(value.mean() for value in rms) / len(rms)
    decay = [(update.decay * value / mean).clamp_max(1) for value in rms]
    scale = [update.learning_rate / (value + update.epsilon) for value in rms]
    history = torch.cat([tokens.new_full((1,), eos), tokens])

    def learn(gradients: Sequence[Tensor]) -> None:
        torch._foreach_lerp_(parameters, trained, decay)
        torch._foreach_addcmul_(parameters, scale, gradients, value=-1)

    pieces = _pieces(model, history[:, None], update.bptt, title, learn)
    return torch.cat([log_q.squeeze(1) for log_q in pieces])


def _pieces(
    model: StreamModel,
    words: Tensor,
    bptt: int,
    title: str,
    use: Callable[[Sequence[Tensor]], None],
) -> Iterator[Tensor]:
    """log q ``(T, B)`` of the next words, piece by piece with the weights of the moment.

    After each piece ``use`` gets the gradients of its mean cross-entropy, one a parameter. Raises
    :class:`ValueError` where ``bptt`` is not the model's own piece, if it has one.
    """
    if model.piece not in (None, bptt):
        raise ValueError(f"the model reads pieces of {model.piece} words; set `bptt` to that")
    parameters = list(model.parameters())

    def read(piece: Tensor, target: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        encoded, state = model.encode(piece, state)
        log_q = model.log_q_of(encoded, target)
        gradients = torch.autograd.grad(-log_q.mean(), parameters)
        with torch.no_grad():
            use(gradients)
        return log_q.detach(), *state

    run = Replayed(read) if can_replay(words.device, [model]) else read
    state = model.start(words.shape[1])
    starts = range(0, len(words) - 1, bptt)
    for start in bar(starts, title=title, unit="piece"):
        target = words[start + 1 : start + 1 + bptt]
        log_q, *state = run(words[start : start + len(target)], target, *state)
        yield log_q
