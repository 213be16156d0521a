"""What bilinear interpolation of maps becomes: four weighed pixels for each one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsgc.codegen import families
from dsgc.passes.patterns import layer_module
from dsgc.programs.values import Rows
from dsgc.programs.writer import Writer

__all__ = ["interpolation_rule"]

_MODULES = (nn.Upsample, nn.UpsamplingBilinear2d)


class _Blend(NamedTuple):
    """Pixels `table` [4, H * W] with `weights` [4, H * W] make maps of `size` (H, W)."""

    size: tuple[int, int]
    table: Tensor
    weights: Tensor


def interpolation_rule(
    writer: Writer, node: fx.Node, x: Rows, run: Callable[[Tensor], Any] | None
) -> Callable[[], Rows] | None:
    """The rule for a node that does `run` to two samples, if that is bilinear interpolation.

    Maps that hold the numbers of their rows and columns tell between which of them a pixel lies,
    instead of arguments: sizes and scale factors, corners aligned or not.
    """
    known = node.target is F.interpolate or layer_module(node, _MODULES) is not None
    if run is None or not known or x.matrix:
        return None
    blend = _blend_of(run, x.size[1], x.size[2])
    return None if blend is None else lambda: _blended(writer, x, blend)


def _blend_of(run: Callable[[Tensor], Tensor], height: int, width: int) -> _Blend | None:
    down = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    across = torch.arange(width, dtype=torch.float64).expand(height, width)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(height, width, dtype=torch.float64, generator=generator)
    made = run(torch.stack((down, across, drawn)).expand(2, -1, -1, -1))[0]
    rows, row_parts = _between(made[0], height)
    columns, column_parts = _between(made[1], width)
    pixels = (rows[:, None] * width + columns[None]).flatten(0, 1).flatten(1)
    weights = (row_parts[:, None] * column_parts[None]).flatten(0, 1).flatten(1)
    # Averages over more pixels, or curves through them, are found out by numbers at random.
    blended = (drawn.flatten()[pixels] * weights).sum(0)
    if not torch.allclose(blended, made[2].flatten(), rtol=0.0, atol=1e-9):
        return None
    size = (int(made.shape[1]), int(made.shape[2]))
    return _Blend(size, pixels.to(torch.int32), weights.to(torch.float32))


def _between(at: Tensor, extent: int) -> tuple[Tensor, Tensor]:
    """The two rows or columns that positions `at` lie between, and the parts of each."""
    low = at.floor().clamp(0, extent - 1)
    part = at - low
    high = (low + 1).clamp(max=extent - 1)
    return torch.stack((low, high)).long(), torch.stack((1.0 - part, part))


def _blended(writer: Writer, value: Rows, blend: _Blend) -> Rows:
    x = writer.settle(value)
    made = writer.rows((x.size[0], *blend.size), width=x.width)
    writer.program.call(
        families.moves(),
        "blend_rows",
        x.view,
        writer.program.constant(blend.weights, "parts"),
        made.view,
        writer.program.constant(blend.table, "table"),
        math.prod(x.size[1:]),
    )
    return made
