"""Kernels that weigh pixels, reorder channels and convolve in groups, against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.layout import Geometry
from dsgc.codegen.tiles import PLAIN_COLUMNS

LIBRARIES = Libraries(KernelCache())
SAMPLES, SOURCE, PIXELS = 3, 10, 7


def rows_of(*shape: int) -> Tensor:
    """Rows with one of zeros behind."""
    return F.pad(torch.randn(*shape), (0, 0, 0, 1))


@pytest.mark.parametrize("width", [3, 16, 48])
@pytest.mark.parametrize("taps", [1, 4, 5])
def test_blended_rows_are_weighted_sums(taps: int, width: int) -> None:
    torch.manual_seed(0)
    x, weight = rows_of(SAMPLES * SOURCE, width), torch.randn(taps, PIXELS)
    table = torch.randint(SOURCE, (taps, PIXELS), dtype=torch.int32)
    out = torch.full((SAMPLES * PIXELS + 1, width), float("nan"))
    LIBRARIES(families.moves(), "blend_rows")(x, weight, out, table, SOURCE)
    pixels = x[:-1].view(SAMPLES, SOURCE, width)[:, table.long()]
    expected = (weight[..., None] * pixels).sum(1).flatten(0, 1)
    torch.testing.assert_close(out[:-1], expected, rtol=1e-5, atol=1e-5)
    assert not out[-1].any()


@pytest.mark.parametrize("width", [3, 16, 48])
def test_gathered_rows_come_from_other_pixels_and_channels(width: int) -> None:
    torch.manual_seed(0)
    x = rows_of(SAMPLES * SOURCE, 32)
    table = torch.randint(-1, SOURCE, (PIXELS,), dtype=torch.int32)
    skip = torch.randint(8, (PIXELS,), dtype=torch.int32)
    channels = torch.randint(-1, 25, (width,), dtype=torch.int32)
    out = torch.full((SAMPLES * PIXELS + 1, width), float("nan"))
    LIBRARIES(families.moves(), "gather_rows")(x, out, table, skip, channels, SOURCE)
    source = x[:-1].view(SAMPLES, SOURCE, 32)
    for p in range(PIXELS):
        for c in range(width):
            near, channel = int(table[p]), int(channels[c])
            there = near >= 0 and channel >= 0
            wanted = source[:, near, int(skip[p]) + channel] if there else torch.zeros(SAMPLES)
            assert torch.equal(out[:-1].view(SAMPLES, PIXELS, width)[:, p, c], wanted)
    assert not out[-1].any()


@pytest.mark.parametrize("columns", PLAIN_COLUMNS)
@pytest.mark.parametrize("depth", [1, 6, 13])
def test_tiles_of_a_grouped_convolution_read_their_own_channels(depth: int, columns: int) -> None:
    torch.manual_seed(0)
    tiles, size = 3, (5, 4)
    geometry = Geometry.forward(size, size, (3, 3), (1, 1), (1, 1), (1, 1))
    start = torch.tensor([7, 0, 20 - depth], dtype=torch.int32)
    x = rows_of(SAMPLES * geometry.source_area, 20)
    weight, bias = torch.randn(tiles, 9, depth, columns), torch.randn(tiles * columns)
    out = torch.full((SAMPLES * geometry.target_area, tiles * columns), float("nan"))
    LIBRARIES(families.grouped_convolution(), f"grouped_convolution_{columns}")(
        *(x, weight.flatten(0, 1), bias, out, geometry.table(), start, geometry.source_area)
    )
    maps = x[:-1].view(SAMPLES, *size, 20).permute(0, 3, 1, 2)
    for tile, first in enumerate(start.tolist()):
        own = slice(tile * columns, (tile + 1) * columns)
        plain = weight[tile].permute(2, 1, 0).reshape(columns, depth, 3, 3)
        made = F.conv2d(maps[:, first : first + depth], plain, bias[own], padding=1)
        found = out.view(SAMPLES, *size, -1)[..., own].permute(0, 3, 1, 2)
        torch.testing.assert_close(found, made, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "width"), [(1, 16), (16, 16), (37, 48)])
def test_layer_norms_of_rows(channels: int, width: int) -> None:
    torch.manual_seed(0)
    x = F.pad(torch.randn(11, channels) * 5.0 + 20.0, (0, width - channels, 0, 1))
    scale, shift = torch.randn(width), torch.randn(width)
    out = torch.full((12, width), float("nan"))
    LIBRARIES(families.norms(), "norm_rows")(x, scale, shift, out, channels, 1e-5)
    rows = x[:-1, :channels].double()
    expected = F.layer_norm(rows, (channels,), scale[:channels].double(), shift[:channels].double())
    torch.testing.assert_close(out[:-1, :channels], expected.float(), rtol=1e-4, atol=1e-5)
    assert not out[-1].any()
    assert not out[:, channels:].any()
