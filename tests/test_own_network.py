"""A user's own network: what is refused before anything is trained, each in one sentence."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from paperlib.checkpoints import CheckpointError
from paperlib.corpora import Corpus
from paperlib.models.stream import FromLogits, ModelError
from paperlib.settings import StreamTraining
from paperlib.stream_tasks import DiscriminatorStreams, FinetuningStreams, LanguageModelStreams
from paperlib.training import Trainer, TrainingError

WORDS, PIECE = 9, 4
SETTINGS = StreamTraining(
    batch_size=2, bptt=PIECE, max_epochs=2, learning_rate=0.5, regularised=False
)


def corpus(seed=0):
    rng = np.random.default_rng(seed)
    tokens = {name: rng.integers(0, WORDS, 40) for name in ("train", "valid", "test")}
    words = (*map(str, range(WORDS - 1)), "<eos>")
    return Corpus(name="own", title="Own", words=words, checksums={}, **tokens)


class Recurrent(nn.Module):
    """As a careful user would write it, unless ``how`` says otherwise."""

    def __init__(self, n_words=WORDS, how=""):
        super().__init__()
        self.how = how
        self.embedding = nn.Embedding(n_words, 6)
        two_ways = how == "both directions"
        self.rnn = nn.GRU(6, 6, bidirectional=two_ways, batch_first=how == "batch first")
        self.output = nn.Linear(6 * (1 + two_ways), n_words)
        self.output.weight.requires_grad_(how != "frozen")

    def forward(self, words):
        hidden, state = self.rnn(self.embedding(words))
        logits = self.output(hidden)
        if self.how == "state too":
            return logits, state
        return logits.transpose(0, 1) if self.how == "texts first" else logits


def own(seed=0, **options):
    torch.manual_seed(seed)
    return FromLogits(Recurrent(**options), piece=PIECE)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"how": "both directions"}, "depend on words that come later"),
        ({"how": "batch first"}, "for one text depend on the words of another"),
        ({"how": "state too"}, "the network returns a tuple; let it return the logits alone"),
        ({"how": "texts first"}, r"returns \(3, 4, 9\); it has to be \(T, B, V\)"),
        ({"n_words": 8}, r"cannot read words of shape \(4, 3\).*with ids below 9 \(IndexError"),
    ],
)
def test_a_network_that_is_no_language_model_is_refused(options, says):
    with pytest.raises(ModelError, match=says):
        LanguageModelStreams("t", own(**options), corpus(), SETTINGS, seed=0)


def test_a_network_as_it_should_be_is_taken_and_left_as_it_was():
    model = own()
    before = copy.deepcopy(model.state_dict())
    assert model.check(WORDS) == WORDS
    LanguageModelStreams("t", model, corpus(), SETTINGS, seed=0)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    one_step = FromLogits(nn.Embedding(WORDS, WORDS), piece=1)
    assert one_step.check(WORDS) == WORDS


def test_models_that_cannot_be_trained_together_are_refused():
    model, q0 = own(0), own(1)
    frozen = own(2)
    frozen.requires_grad_(False)
    for trained, others, says in (
        (model, {"q0": model}, "shares weights with a frozen one"),
        (model, {"q0": FromLogits(model.network, piece=PIECE)}, "shares weights"),
        (frozen, {"q0": q0}, "no weight of the model that is trained asks for a gradient"),
        (model, {"q0": own(n_words=WORDS + 1)}, "different vocabularies, of 9 and 10 words"),
    ):
        with pytest.raises(TrainingError, match=says):
            DiscriminatorStreams("t", trained, corpus(), SETTINGS, seed=0, **others)
    with pytest.raises(TrainingError, match="shares weights"):
        FinetuningStreams("t", model, corpus(), SETTINGS, 0, q0=q0, discriminator=model)
    LanguageModelStreams("t", own(how="frozen"), corpus(), SETTINGS, seed=0)  # part of it learns


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_precision_are_trained(dtype, tmp_path):
    """All of them: PyTorch's fused step leaves most of those of half precision as they were."""
    model = FromLogits(nn.Embedding(WORDS, 32).to(dtype), piece=PIECE)
    model.network = nn.Sequential(model.network, nn.Linear(32, WORDS, dtype=dtype))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    task = LanguageModelStreams("t", model, corpus(), SETTINGS, seed=0)
    Trainer(task, SETTINGS, tmp_path / "checkpoint.pt", last=True).run()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all()
        assert (tensor != before[name]).float().mean() > 0.2, name


def test_a_checkpoint_of_another_text_seed_or_frozen_model_is_refused(tmp_path):
    q0, path = own(1), tmp_path / "discriminator.pt"

    def train(text=None, seed=0, other=None):
        task = DiscriminatorStreams("t", own(2), text or corpus(), SETTINGS, seed, q0=other or q0)
        return Trainer(task, SETTINGS, path).run()

    train()
    train()  # the same one is found
    for changed, says in (
        ({"text": corpus(seed=1)}, "another validation text"),
        ({"seed": 1}, "another seed"),
        ({"other": own(3)}, "another frozen models"),
    ):
        with pytest.raises(CheckpointError, match=rf"is of another training \({says}\); move it"):
            train(**changed)
