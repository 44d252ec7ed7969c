"""Matrix products of which factors are rounded to bfloat16 where the hardware gains by that.

:func:`paperlib.hardware.rounded_products` says when. What gradients are made of can be rounded
itself, so there a CPU multiplies bfloat16 matrices as such, about twice as fast as float32.
Logits cannot, and stay float32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib import hardware


def rounds(factor: Tensor) -> bool:
    """Whether products of this ``factor`` are of bfloat16 now."""
    return factor.dtype == torch.float32 and hardware.rounds_to_bfloat16(factor.device)


def multiply(left: Tensor, right: Tensor) -> Tensor:
    """``(n, m)`` times ``(m, o)``; where one factor is bfloat16, the other is made so too.

    Then sums are float32, and so is a GPU's result; a CPU's is rounded once, to bfloat16.
    """
    if torch.bfloat16 not in (left.dtype, right.dtype):
        return left @ right
    left, right = left.bfloat16(), right.bfloat16()
    if left.is_cuda:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left @ right


class _Linear(torch.autograd.Function):
    """W z + b for rows z, whose gradients are products of bfloat16."""

    @staticmethod
    def forward(ctx, latents: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(latents, weight)
        return torch.addmm(bias, latents, weight.T)

    @staticmethod
    def backward(ctx, grad: Tensor):
        latents, weight = ctx.saved_tensors
        rounded = grad.bfloat16()
        by_latents, by_weight = multiply(rounded, weight), multiply(rounded.T, latents)
        return by_latents.to(grad.dtype), by_weight.to(grad.dtype), grad.sum(0)


def linear(latents: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W z + b ``(..., V)`` for ``latents`` z ``(..., E)``, as :func:`torch.nn.functional.linear`.

    Where a CPU rounds, its gradients are products of bfloat16.
    """
    if latents.is_cuda or not rounds(latents):
        return F.linear(latents, weight, bias)
    logits = _Linear.apply(latents.flatten(0, -2), weight, bias)
    return logits.view(*latents.shape[:-1], -1)
