"""Products of bfloat16 factors, against float64 and against PyTorch's own linear layer."""

import pytest
import torch
import torch.nn.functional as F

from paperlib import hardware
from paperlib.models.products import linear, multiply

EPSILON = torch.finfo(torch.bfloat16).eps


def differentiated(function, parts, grad):
    """Value and gradients of a function of ``parts``, given the gradient by its value."""
    inputs = [part.clone().requires_grad_() for part in parts]
    value = function(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs, grad)]


@pytest.fixture
def layer():
    """Latents, weight, bias and a gradient from above."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((6, 5, 16), (40, 16), (40,), (6, 5, 40))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def test_a_linear_layer_rounds_its_gradients_alone(layer):
    *parts, grad = layer
    exact = differentiated(F.linear, [part.double() for part in parts], grad.double())
    with hardware.rounded_products():
        # What is rounded for the logits is the hardware's choice, as in any other product.
        value = F.linear(*parts)
        found = differentiated(linear, parts, grad)
    torch.testing.assert_close(found[0], value)
    for one, other in zip(found[1:3], exact[1:3], strict=True):
        error = (one - other).norm() / other.norm()
        assert EPSILON / 100 < error < EPSILON
    torch.testing.assert_close(found[3], exact[3].float())  # a sum, no product


def test_a_linear_layer_is_pytorchs_where_nothing_is_rounded(layer):
    *parts, grad = layer
    for kind in (torch.float32, torch.float64):
        same = [part.to(kind) for part in parts]
        with hardware.rounded_products(kind == torch.float64):  # which is never rounded
            found = differentiated(linear, same, grad.to(kind))
        expected = differentiated(F.linear, same, grad.to(kind))
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)


def test_a_linear_layer_has_second_derivatives(layer):
    def second(function, parts):
        latents, weight, bias = (part.clone().requires_grad_() for part in parts)
        of_squares = function(latents, weight, bias).pow(2).sum()
        (first,) = torch.autograd.grad(of_squares, latents, create_graph=True)
        return torch.autograd.grad(first.sum(), weight)[0]

    exact = second(F.linear, [part.double() for part in layer[:3]])
    with hardware.rounded_products():
        found = second(linear, layer[:3])
    assert (found - exact).norm() < 5 * EPSILON * exact.norm()


@pytest.mark.parametrize("rounded", [(True, False), (False, True), (True, True)])
def test_one_bfloat16_factor_makes_a_product_one_of_bfloat16(rounded):
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(shape, generator=generator) for shape in ((20, 30), (30, 10))]
    given = [
        factor.bfloat16() if is_rounded else factor
        for factor, is_rounded in zip(factors, rounded, strict=True)
    ]
    product = multiply(*given)
    assert product.dtype == torch.bfloat16
    left, right = (factor.bfloat16().double() for factor in factors)
    torch.testing.assert_close(product.double(), left @ right, rtol=EPSILON, atol=EPSILON)
