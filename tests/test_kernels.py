"""The kernels of a GPU without one: Triton's interpreter runs them on a CPU, see interpreted.py."""

import json
import os
import subprocess
import sys

import pytest
import torch

from paperlib import paths

pytest.importorskip("triton", reason="Triton is not installed, which runs kernels on a CPU too")

LIMITS = {
    "float64": 20 * torch.finfo(torch.float64).eps,
    "float32": 800 * torch.finfo(torch.float32).eps,  # of a word with log r = -800
    "rounded": 1e-2,
}


@pytest.fixture(scope="module")
def errors():
    # In a process of its own: Triton looks at this variable when it is imported.
    run = subprocess.run(
        [sys.executable, "-m", "tests.interpreted"],
        cwd=paths.PROJECT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_each_kernel_is_its_formula_also_in_rows_that_are_filled_up(errors):
    assert len(errors["alone"]) == 12
    for what, error in errors["alone"].items():
        assert error < LIMITS["rounded" if "bfloat16" in what else "float64"], what


@pytest.mark.parametrize("dtype", LIMITS)
def test_sums_over_the_vocabulary_are_right_by_way_of_the_kernels(errors, dtype):
    assert len(errors[dtype]) == 4 + 4 + 5 + 1
    for what, error in errors[dtype].items():
        assert error < LIMITS[dtype], what
