"""How convolutions in groups become kernel calls, on rows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.tiles import DENSE_BLOCK, PLAIN_COLUMNS
from dsgc.ops.layout import ceil_div
from dsgc.programs.dense_rules import Window, convolved
from dsgc.programs.values import Rows
from dsgc.programs.writer import Writer

__all__ = ["convolution"]


class _Tiles(NamedTuple):
    """Register tiles of `columns` outputs, each of which reads `depth` channels from `start` on.

    A tile reads all channels of all groups that it has outputs of, with weights of zero between
    them: nothing is copied before or behind the convolution, and vectors are whole.
    """

    columns: int
    depth: int
    start: list[int]

    @property
    def cost(self) -> float:
        """Time relative to other widths, as measured on AVX-512: beginning a tap costs about as
        much as 8 channels, and a single vector of weights keeps processors half as busy again.
        """
        narrow = self.columns == min(PLAIN_COLUMNS)
        return self.columns * len(self.start) * (self.depth + 8) * (1.5 if narrow else 1.0)


def convolution(
    writer: Writer, value: Rows, weight: Tensor, bias: Tensor | None, window: Window, groups: int
) -> Rows:
    """A convolution in groups: `weight` [K, C / groups, kh, kw]."""
    x, outputs = writer.settle(value), weight.shape[0]
    geometry = convolved(x, weight, window)
    wide = ceil_div(outputs, DENSE_BLOCK) * DENSE_BLOCK
    tiles = min(
        (
            _tiles(columns, (outputs, x.size[0], groups))
            for columns in PLAIN_COLUMNS
            if wide % columns == 0
        ),
        key=lambda one: one.cost,
    )
    made = replace(writer.rows((outputs, *geometry.target), width=wide), closed=False)
    writer.program.call(
        families.grouped_convolution(),
        f"grouped_convolution_{tiles.columns}",
        x.view,
        writer.constant(_tiled(weight, groups, tiles), "weight"),
        writer.bias(bias, outputs, DENSE_BLOCK, flat=True),
        made.view.seen_as(made.positions, wide),
        writer.table(geometry),
        writer.constant(torch.tensor(tiles.start, dtype=torch.int32), "start"),
        geometry.source_area,
    )
    return made


def _tiles(columns: int, size: tuple[int, int, int]) -> _Tiles:
    """For (outputs, channels, groups)."""
    outputs, channels, groups = size
    spans = []
    for first in range(0, outputs, columns):
        last = min(first + columns, outputs) - 1
        lowest, highest = first * groups // outputs, last * groups // outputs
        spans.append((lowest * channels // groups, (highest + 1) * channels // groups))
    depth = max(end - begin for begin, end in spans)
    # All are equally deep: the last ones begin earlier, to stay within the row.
    return _Tiles(columns, depth, [min(begin, channels - depth) for begin, _ in spans])


def _tiled(weight: Tensor, groups: int, tiles: _Tiles) -> Tensor:
    """`weight` [K, C / groups, kh, kw] as [tiles * taps, depth, columns], zeros between groups."""
    outputs, inputs = weight.shape[:2]
    taps = math.prod(weight.shape[2:])
    stored = torch.zeros(len(tiles.start) * tiles.columns, taps, tiles.depth)
    output = torch.arange(outputs)
    start = torch.tensor(tiles.start)[output // tiles.columns]
    channel = (output * groups // outputs * inputs - start)[:, None] + torch.arange(inputs)
    values = weight.detach().flatten(2).transpose(1, 2)  # [K, taps, C / groups]
    stored[:outputs].scatter_(2, channel[:, None].expand(-1, taps, -1), values)
    wanted = (len(tiles.start), tiles.columns, taps, tiles.depth)
    return stored.view(wanted).permute(0, 2, 3, 1).reshape(-1, tiles.depth, tiles.columns)
