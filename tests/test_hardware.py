"""What a training's precision means on the hardware at hand."""

import sys
import types

import pytest
import torch
from conftest import needs_bfloat16

from paperlib import cli, hardware, models, paths
from paperlib.models import fused


def test_auto_is_a_precision_that_works_here():
    assert hardware.precision("float32") == "float32"
    assert hardware.precision("auto") in (["float32", "mixed"][: 1 + hardware.has_bfloat16()])


@needs_bfloat16
def test_mixed_precision_can_be_asked_for_where_there_is_bfloat16():
    assert hardware.precision("mixed") == "mixed"


def test_trying_bfloat16_draws_nothing_from_the_global_random_state():
    state = torch.get_rng_state()
    hardware.has_bfloat16.__wrapped__()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def without_bfloat16(monkeypatch):
    """Hardware that has no LSTM in bfloat16."""
    monkeypatch.setattr(hardware, "has_bfloat16", lambda: False)


def test_mixed_precision_without_bfloat16_is_one_sentence(
    without_bfloat16, tmp_path, monkeypatch, capsys
):
    profile = (paths.PROFILES / "smoke.toml").read_text(encoding="utf-8")
    assert 'precision = "float32"' in profile
    mixed = profile.replace('precision = "float32"', 'precision = "mixed"')
    path = tmp_path / "mixed.toml"
    path.write_text(mixed, encoding="utf-8")
    assert cli.synthetic(str(path), 0, tmp_path / "seed.json", None) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Section 3, seed 0")
    assert "cannot train in mixed precision, for it has no LSTM in bfloat16; set" in last
    assert last.endswith("in the profile.")
    assert not (tmp_path / "seed.json").exists()


@pytest.fixture
def rounding_by_default():
    """Someone else's setting of this process."""
    backend = torch.backends.mkldnn.matmul
    before, backend.fp32_precision = backend.fp32_precision, "bf16"
    yield
    backend.fp32_precision = before


def test_only_rounded_products_round(rounding_by_default):
    here = torch.device("cpu")
    assert not hardware.rounds_to_bfloat16(here)
    with hardware.rounded_products():
        assert hardware.rounds_to_bfloat16(here)
        with hardware.rounded_products(False):
            assert not hardware.rounds_to_bfloat16(here)
        assert hardware.rounds_to_bfloat16(here)
    assert not hardware.rounds_to_bfloat16(here)


def test_without_a_compiler_there_are_no_kernels(monkeypatch):
    def fail(*_):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    broken = types.ModuleType("paperlib.models.kernels")
    broken.largest_and_total = fail
    monkeypatch.setattr(fused, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, broken.__name__, broken)
    monkeypatch.setattr(models, "kernels", broken, raising=False)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: torch.ones(size))
    with pytest.warns(UserWarning, match="needs a C compiler.*Failed to find C compiler"):
        assert fused._gpu_kernels.__wrapped__() is None
