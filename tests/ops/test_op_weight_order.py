"""Weights in every order of memory: some are read and written in place, results are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dsgc.ops  # noqa: F401 - defines the operators
from dsgc.codegen import families
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.weights import blocked_weight
from dsgc.ops import mask_to_selection
from tests.ops.cases import Namespace

ORDERS = ["contiguous", "channels-last", "misaligned", "fortran", "turned", "gaps"]
LIBRARIES = Libraries(KernelCache())
GEOMETRY = ([1, 1], [1, 1], [1, 1])


def ordered(order: str, *shape: int) -> Tensor:
    """A weight that is contiguous, channels-last, channels-last but misaligned, in Fortran's order,
    with its taps turned, or has gaps.
    """
    weight = torch.randn(shape)
    if order == "fortran":
        return weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    if order == "turned":
        return weight.transpose(2, 3).contiguous().transpose(2, 3)
    if order == "channels-last":
        return weight.contiguous(memory_format=torch.channels_last)
    if order == "misaligned":
        k, c, r, s = shape
        flat = torch.empty(weight.numel() + 1)[1:]
        return flat.view(k, r, s, c).permute(0, 3, 1, 2).copy_(weight)
    if order == "gaps":
        return torch.randn(shape[0], 2 * shape[1], *shape[2:])[:, ::2]
    return weight


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("side", [3, 40])  # blocks of weights are visited once, or many times
@pytest.mark.parametrize(
    ("channels", "outputs", "bi", "bo"),
    [
        (64, 96, 16, 16),
        (64, 96, 8, 16),
        (64, 96, 16, 8),
        (64, 96, 0, 16),
        (40, 48, 16, 16),
        (40, 48, 0, 32),
        (48, 48, 1, 16),
    ],
)
def test_gradients(
    order: str, kernel: int, side: int, channels: int, outputs: int, bi: int, bo: int
) -> None:
    torch.manual_seed(0)
    cpu, meant = Namespace.named("dsgc_cpu").ops, torch.ops.dsgc
    size, batch = [channels, side, side], 4
    geometry = (GEOMETRY[0], [kernel // 2] * 2, GEOMETRY[2])
    x, index, rowptr = torch.randn(batch, *size), None, None
    if bi:
        kept = torch.rand(batch, -(-channels // bi), side, side) < 0.4
        index, rowptr = mask_to_selection(kept, bits=bi == 1)
        x = meant.pack(x, index, rowptr, bi)
    source = (x, index, rowptr, None, None, "relu", size)
    weight = ordered(order, outputs, channels, kernel, kernel)
    chosen = mask_to_selection(torch.rand(batch, -(-outputs // bo), side, side) < 0.4, bits=False)
    y = meant.conv2d(*source, weight, None, *chosen, bo, *geometry)
    found = cpu.conv2d(*source, weight, None, *chosen, bo, *geometry)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-3)
    backward = (torch.randn_like(y), *source, weight, *chosen, bo, *geometry, True, True, False)
    one, other = cpu.conv2d_backward(*backward), meant.conv2d_backward(*backward)
    torch.testing.assert_close(one[0], other[0], rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(one[3], other[3], rtol=1e-3, atol=1e-2)
    if order != "gaps":
        # Or autograd would copy it when it accumulates.
        kept_dims = [i for i in range(4) if weight.shape[i] > 1]
        assert [one[3].stride(i) for i in kept_dims] == [weight.stride(i) for i in kept_dims]


def test_blocks_are_copied_when_they_are_read_often() -> None:
    weight = ordered("channels-last", 64, 32, 3, 3).transpose(0, 1)
    once = blocked_weight(LIBRARIES, weight, 16, 16, visits=1.0)
    often = blocked_weight(LIBRARIES, weight, 16, 16, visits=100.0)
    assert once.data_ptr() == weight.data_ptr()
    assert often.data_ptr() != weight.data_ptr()
    assert torch.equal(once, often)
    assert often.is_contiguous()
    assert blocked_weight(LIBRARIES, weight, 16, 16).is_contiguous()  # not every kernel can
    out = torch.empty_like(often)
    LIBRARIES(families.convolution(16, 16), "block_weights_16_16")(weight.flatten(2), out)
    assert torch.equal(out, often)
