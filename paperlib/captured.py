"""Work of many small kernels as one CUDA graph: a GPU need not wait for Python between them."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before the capture, in which libraries choose their kernels and make their workspaces."""


class Captured:
    """``function(*inputs)`` on a GPU, captured once and replayed with other inputs of these shapes.

    The function takes and returns tensors, and must not wait for the GPU. What it changes beside,
    it changes in ``WARM_UP`` calls before the capture too; putting that back is the caller's part.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor):
        self._inputs = [given.clone() for given in inputs]
        self._shapes = [given.shape for given in inputs]
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._outputs = function(*self._inputs)

    def takes(self, *inputs: Tensor) -> bool:
        """Whether the inputs have the shapes of those it was captured with."""
        return [given.shape for given in inputs] == self._shapes

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function returns; the next call leaves it as it is."""
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)
