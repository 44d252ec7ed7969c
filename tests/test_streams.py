"""Running text in streams: pieces, and that evaluation counts every token once."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paperlib import streams
from paperlib.models import AWDLSTM
from paperlib.models.stream import FromLogits
from paperlib.network import Network

NETWORK = Network(head="mos", embedding=6, hidden=(7, 5), experts=(0, 2))


def model(words=11, seed=0):
    return AWDLSTM(words, NETWORK, torch.Generator().manual_seed(seed)).double()


def tokens(n, words=11, seed=1):
    return torch.randint(words, (n,), generator=torch.Generator().manual_seed(seed))


@given(steps=st.integers(1, 3000), bptt=st.integers(5, 90), excess=st.integers(0, 40))
def test_pieces_cover_every_step_once_and_are_never_too_long(steps, bptt, excess):
    cut = streams.pieces(steps, bptt, bptt + excess, np.random.default_rng(0))
    covered = [step for piece in cut for step in range(piece.start, piece.start + piece.length)]
    assert covered == list(range(steps))
    assert all(piece.length <= bptt + excess for piece in cut)
    assert all(piece.length >= 5 for piece in cut[:-1])


def test_lengths_are_normal_around_bptt_and_one_in_twenty_around_half_of_it():
    cut = streams.pieces(2_000_000, 70, 110, np.random.default_rng(0))
    lengths = np.array([piece.length for piece in cut])
    short = lengths < 52
    assert short.mean() == pytest.approx(0.05, abs=0.005)
    # int() takes half a word off on average.
    assert lengths[~short].mean() == pytest.approx(69.5, abs=0.2)
    assert lengths[~short].std() == pytest.approx(5, abs=0.1)
    assert lengths[short].mean() == pytest.approx(34.5, abs=0.3)


def one_by_one(network, text, eos):
    """log q of every token, read one at a time: the definition."""
    state, values, word = network.start(1), [], eos
    for target in text.tolist():
        encoded, state = network.encode(torch.tensor([[word]]), state)
        values.append(network.log_q(encoded)[0, 0, target].item())
        word = target
    return torch.tensor(values, dtype=torch.float64)


@torch.no_grad()
def test_one_stream_equals_reading_word_by_word():
    network, text = model(), tokens(150)
    found = streams.over_tokens([network], text, 3, network.log_q_of, 1)
    torch.testing.assert_close(found, one_by_one(network, text, 3))


@given(n=st.integers(2, 400), parallel=st.integers(1, 9), warm_up=st.integers(1, 60))
def test_every_token_is_counted_once_whatever_the_number_of_streams(n, parallel, warm_up):
    """Read by what it is and where it stands, so that one that is missing would show."""
    text = torch.arange(n)
    network = model(words=n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "WARM_UP", warm_up)
        found = streams.over_tokens([network], text, 0, lambda _, target: target.double(), parallel)
    assert found.tolist() == list(range(n))


def test_the_number_of_streams_does_not_change_the_perplexity():
    """Of a network that has learnt to use its memory: every word of the text stands twice."""
    network, text = model(), tokens(2500).repeat_interleave(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    batch = text.view(50, 100).T
    for _ in range(60):
        optimizer.zero_grad()
        encoded, _ = network.encode(batch[:-1], network.start(50))
        (-network.log_q_of(encoded, batch[1:]).mean()).backward()
        optimizer.step()
    nll = [
        -streams.over_tokens([network], text, 3, network.log_q_of, parallel).mean().item()
        for parallel in (1, 2, 7, 16)
    ]
    assert nll == pytest.approx([nll[0]] * 4, rel=1e-4)
    without_memory, _ = network.encode(text[None, :-1], network.start(4999))
    assert nll[0] < 0.9 * -network.log_q_of(without_memory, text[None, 1:]).mean().item()


def test_the_warm_up_reads_what_came_just_before():
    """A first counted word's state is that of reading the warm-up, and nothing else."""
    network, text = model(), tokens(60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "WARM_UP", 30)
        found = streams.over_tokens([network], text, 3, network.log_q_of, 2)
    torch.testing.assert_close(found, one_by_one(network, text, 3))


class Counting(nn.Module):
    """As logits, how many words of its piece a network has read; for no more than ``longest``."""

    longest = 7

    def forward(self, words):
        assert len(words) <= self.longest
        return torch.arange(1.0, len(words) + 1)[:, None, None].expand(*words.shape, 3)


@given(n=st.integers(2, 200), parallel=st.integers(1, 9))
def test_a_model_without_memory_reads_pieces_from_the_beginning_however_many_streams(n, parallel):
    network = FromLogits(Counting(), piece=7)
    found = streams.over_tokens(
        [network], torch.zeros(n, dtype=torch.int64), 0, lambda read, _: read[..., 0], parallel
    )
    assert found.tolist() == [1 + position % 7 for position in range(n)]


def test_models_that_read_different_pieces_are_not_read_together():
    networks = [FromLogits(Counting(), piece=piece) for piece in (5, 7)]
    with pytest.raises(ValueError, match="pieces of 5 words, another of 7"):
        streams.over_tokens(networks, tokens(30), 3, lambda *_: None, 2)


def test_several_values_a_token_keep_their_order():
    network, text = model(), tokens(37)

    def read(encoded, target):
        return torch.stack([network.log_q_of(encoded, target), target.double()], dim=-1)

    found = streams.over_tokens([network], text, 3, read, 4)
    assert found.shape == (37, 2)
    assert found[:, 1].tolist() == text.tolist()
