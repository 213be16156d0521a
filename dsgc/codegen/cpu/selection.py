"""Generated kernels behind drs_scores and select_winners."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import apply, padded_source
from dsgc.codegen.cpu.layout import Geometry, check_float32, selection
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.tiles import PROJECTED_LANES, SCORE_CHANNELS
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.ops.reference import selection as reference
from dsgc.ops.spec import Activation

__all__ = ["drs_scores", "select_above", "select_winners"]

RANKED_BLOCKS = 128  # ranking is quadratic: beyond this many scores a row, sorting wins


def drs_scores(
    libraries: Libraries,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    projection: Tensor,
    projected: Tensor,
    out_channels: int,
    block: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``dsgc::drs_scores``."""
    check_float32(x)
    source = Activation(x, index, rowptr, scale, shift, act, size)
    if projected.dim() == 2:
        # The published window form is dense matrix products by nature: torch's are as good as any.
        return reference.drs_scores(
            *source,
            projection,
            projected,
            out_channels,
            block,
            kernel,
            stride,
            padding,
            dilation,
        )
    target = conv_output_size(size, kernel, stride, padding, dilation)
    pixels = _project(libraries, source, projection)
    weight = _padded_projected(projected, pixels.shape[1])
    batch = (pixels.shape[0] - 1) // (size[1] * size[2])
    scores = torch.empty((batch * target[0] * target[1], ceil_div(out_channels, block)))
    geometry = Geometry.forward(size[1:], target, kernel, stride, padding, dilation)
    libraries(families.blocked(block), f"block_scores_{block}")(
        pixels,
        weight,
        scores,
        geometry.table(),
        geometry.source_area,
    )
    return scores


def _padded_projected(projected: Tensor, depth: int) -> Tensor:
    _, rows, columns = projected.shape
    wanted = ceil_div(columns, SCORE_CHANNELS) * SCORE_CHANNELS
    if (rows, columns) == (depth, wanted) and projected.is_contiguous():
        return projected
    return F.pad(projected, (0, wanted - columns, 0, depth - rows)).contiguous()


def _project(libraries: Libraries, source: Activation, projection: Tensor) -> Tensor:
    """Every pixel in the reduced space: rows [P + 1, depth], the last one zero."""
    channels, depth = projection.shape
    lanes = ceil_div(depth, PROJECTED_LANES) * PROJECTED_LANES
    matrix = F.pad(projection.to(torch.float32), (0, lanes - depth))
    if source.index is None or source.rowptr is None:
        rows = padded_source(libraries, source)
        return rows @ F.pad(matrix, (0, 0, 0, rows.shape[1] - channels))
    chosen = selection(libraries, source.index, source.rowptr)
    values = apply(libraries, source.x.contiguous(), chosen.ids, source)
    block = values.shape[1]
    blocks = ceil_div(channels, block)
    matrix = F.pad(matrix, (0, 0, 0, blocks * block - channels))
    out = torch.empty((chosen.positions + 1, lanes), dtype=torch.float32)
    out[-1] = 0.0
    libraries(families.blocked(block), f"project_{block}")(
        values,
        *chosen,
        matrix.view(blocks, block, -1, PROJECTED_LANES),
        out.view(-1, lanes // PROJECTED_LANES, PROJECTED_LANES),
    )
    return out


def select_winners(
    libraries: Libraries,
    scores: Tensor,
    winners: int,
    out_size: Sequence[int],
    tile: Sequence[int],
    bits: bool,
) -> tuple[Tensor, Tensor]:
    """``dsgc::select_winners``."""
    check_float32(scores)
    positions, blocks = scores.shape
    if tuple(tile) != (1, 1) or bits or blocks > RANKED_BLOCKS or not 1 <= winners <= blocks:
        return reference.select_winners(scores, winners, out_size, tile, bits)
    index = torch.empty((positions, winners), dtype=torch.int32)
    libraries(families.lists(), "rank_winners")(scores.contiguous(), index)
    rowptr = torch.arange(0, (positions + 1) * winners, winners, dtype=torch.int32)
    return index.view(-1), rowptr


def select_above(
    libraries: Libraries, scores: Tensor, threshold: Tensor, strict: bool, bits: bool
) -> tuple[Tensor, Tensor]:
    """``dsgc::select_above``: one comparison a score, bound by memory whoever does it."""
    check_float32(scores)
    return reference.select_above(scores, threshold, strict, bits)
