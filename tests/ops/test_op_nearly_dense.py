"""Packed inputs of which hardly a block is missing: other kernels, the same results."""

from __future__ import annotations

import pytest
import torch

from dsgc.codegen.cpu.convolution import nearly_dense
from dsgc.ops import Activation, mask_to_selection
from tests.ops.cases import Namespace


@pytest.mark.parametrize("density", [0.6, 0.75, 1.0])
@pytest.mark.parametrize(("channels", "bi", "bo"), [(128, 16, 16), (40, 8, 16), (72, 32, 8)])
def test_convolution_and_gradients(density: float, channels: int, bi: int, bo: int) -> None:
    torch.manual_seed(0)
    cpu, meant = Namespace.named("dsgc_cpu").ops, torch.ops.dsgc
    size, outputs, geometry = [channels, 9, 7], 48, ([1, 2], [1, 1], [1, 1])
    index, rowptr = mask_to_selection(torch.rand(3, -(-channels // bi), 9, 7) < density, bits=False)
    values = meant.pack(torch.randn(3, *size), index, rowptr, bi)
    act = (torch.rand(channels) + 0.5, torch.randn(channels), "affine_relu", size)
    source = (values, index, rowptr, *act)
    assert nearly_dense(Activation(*source)) == (density > 0.7)
    weight, bias = torch.randn(outputs, channels, 3, 3), torch.randn(outputs)
    chosen = mask_to_selection(torch.rand(3, -(-outputs // bo), 9, 4) < 0.4, bits=False)
    y = meant.conv2d(*source, weight, bias, *chosen, bo, *geometry)
    found = cpu.conv2d(*source, weight, bias, *chosen, bo, *geometry)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-3)
    backward = (torch.randn_like(y), *source, weight, *chosen, bo, *geometry, True, True, True)
    for one, other in zip(
        cpu.conv2d_backward(*backward), meant.conv2d_backward(*backward), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)
