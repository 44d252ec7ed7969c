"""Work of many small kernels as CUDA graphs: a GPU need not wait for Python between them."""

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MOST = 64
"""Shapes of inputs that are captured; calls with others run as they are."""

Function = Callable[..., tuple[Tensor, ...]]
"""Takes tensors and returns tensors."""


def can_replay(device: torch.device, models: Iterable[nn.Module]) -> bool:
    """Whether work of these models there can be replayed: only what they say themselves is known
    of them, by an attribute ``capturable``."""
    return device.type == "cuda" and all(getattr(model, "capturable", False) for model in models)


class Replayed:
    """``function(*inputs)`` on a GPU, replayed as one graph from the second call of each shape on.

    The function takes and returns tensors and must not wait for the GPU. It may change tensors in
    place that it was made with, draw from ``generator``, and add to the gradients of
    ``parameters``.

    The first call with inputs of a shape runs as it is, in which libraries choose their kernels;
    the second one is captured. So each call counts once, whatever way it is done.
    """

    def __init__(
        self,
        function: Function,
        parameters: Iterable[nn.Parameter] = (),
        generator: torch.Generator | None = None,
    ):
        self._function = function
        self._generator = generator
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        # A graph adds to the gradients that were there when it was captured.
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._graphs: dict[tuple, _Graph | None] = {}
        # Its own: at the end of a graph PyTorch frees what libraries keep for the graph's stream,
        # and other graphs of that stream would go on in it.
        self._aside = torch.cuda.Stream()
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the function returns; another call leaves it as it is."""
        self._adopt_gradients()
        shapes = tuple(given.shape for given in inputs)
        if shapes in self._graphs:
            if self._graphs[shapes] is None:
                self._graphs[shapes] = _Graph(
                    self._function, inputs, self._generator, self._aside, self._pool
                )
            return self._graphs[shapes](*inputs)
        if len(self._graphs) < MOST:
            self._graphs[shapes] = None
        return self._run_aside(*inputs)

    def _run_aside(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """In the stream that captures: what is set up for a stream is there then."""
        self._aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._aside):
            outputs = self._function(*inputs)
        torch.cuda.current_stream().wait_stream(self._aside)
        return outputs

    def _adopt_gradients(self) -> None:
        """Let the parameters' gradients be ours, with the values that they have."""
        for parameter, own in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is None:
                own.zero_()
            elif parameter.grad is not own:
                own.copy_(parameter.grad)
            parameter.grad = own


@contextmanager
def _no_collection() -> Iterator[None]:
    """Inside, no cyclic garbage is freed: it may hold another graph, whose end spoils a capture."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class _Graph:
    """A captured call; its memory is that of ``pool``, so one graph at a time is replayed."""

    def __init__(self, function: Function, inputs, generator, stream, pool):
        self._inputs = [given.clone() for given in inputs]
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self._graph.register_generator_state(generator)
        with _no_collection(), torch.cuda.graph(self._graph, pool=pool, stream=stream):
            self._outputs = function(*self._inputs)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)
