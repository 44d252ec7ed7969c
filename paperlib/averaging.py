"""Averaged SGD: the running mean of the weights (Polyak & Juditsky, 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """The mean of a model's weights after each step since averaging began."""

    def __init__(self, model: nn.Module):
        self.steps = 0
        self.weights = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        torch._foreach_lerp_(self.weights, list(model.parameters()), 1 / self.steps)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Let ``model`` have the averaged weights inside the block, whatever happens there."""
        own = [parameter.data for parameter in model.parameters()]
        self._give(model, self.weights)
        try:
            yield
        finally:
            self._give(model, own)

    def put_into(self, model: nn.Module) -> None:
        """Give ``model`` the averaged weights for good."""
        self._give(model, [weight.clone() for weight in self.weights])

    def state(self) -> dict:
        """What a checkpoint keeps."""
        return {"steps": self.steps, "weights": self.weights}

    def load(self, state: dict) -> None:
        """Go on from what :meth:`state` returned."""
        self.steps, self.weights = state["steps"], state["weights"]

    @staticmethod
    def _give(model: nn.Module, weights: list[Tensor]) -> None:
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.data = weight
