"""Generated kernels behind drs_scores and select_winners."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import apply
from dsgc.codegen.cpu.layout import (
    Geometry,
    blocks_of,
    check_float32,
    dense_rows,
    limits,
    padded_channels,
    row_pointers,
    selection,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.tiles import (
    DENSE_BLOCK,
    SCORE_CHANNELS,
    VECTOR,
    ranking_kernel,
)
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.ops.reference import selection as reference
from dsgc.ops.spec import Activation

__all__ = ["FOUR", "drs_scores", "score_weight", "select_above", "select_winners"]

FOUR = 4  # products that an 8-bit dot product adds at once
_ZERO_LEVEL = 128  # the byte that stands for 0


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
    unit: Tensor | None,
    offset: Tensor | None,
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
    if unit is None:
        # The published window form is dense matrix products by nature: torch's are as good as any.
        window = (kernel, stride, padding, dilation)
        return reference.drs_scores(
            *source, projection, projected, unit, offset, out_channels, block, *window
        )
    target = conv_output_size(size, kernel, stride, padding, dilation)
    batch = x.shape[0] if rowptr is None else (rowptr.shape[0] - 1) // (size[1] * size[2])
    scores = libraries.empty(batch * target[0] * target[1], ceil_div(out_channels, block))
    if scores.numel() == 0:
        return scores
    depth = ceil_div(projection.shape[1], FOUR) * FOUR
    z, peak = _project(libraries, source, projection)
    rows, step = _round(libraries, z, peak, batch, depth)
    weight, first = libraries.remember(
        projected,
        f"rounded weight {rows.dtype}",
        partial(score_weight, depth=depth, dtype=rows.dtype),
    )
    geometry = Geometry.forward(size[1:], target, kernel, stride, padding, dilation)
    libraries(families.blocked(block), f"block_scores_{block}")(
        rows if rows.dtype == torch.float32 else rows.view(torch.int32),
        weight,
        first,
        _filled(unit, weight.shape[2]),
        blocks_of(None, weight.shape[2], 1).view(-1)
        if offset is None
        else _filled(offset, weight.shape[2]),
        step,
        scores,
        geometry.table(),
        geometry.source_area,
    )
    return scores


def _filled(values: Tensor, length: int) -> Tensor:
    """A vector with zeros up to ``length``."""
    plain = values.detach().to(torch.float32)
    missing = length - plain.shape[0]
    return (F.pad(plain, (0, missing)) if missing else plain).contiguous()


def score_weight(projected: Tensor, depth: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Projected weights [taps, d, Kp] as the score kernel reads them, and its first sums [Kp]."""
    taps, rows, columns = projected.shape
    wanted = ceil_div(columns, SCORE_CHANNELS) * SCORE_CHANNELS
    filled = F.pad(projected, (0, wanted - columns, 0, depth - rows))
    if dtype == torch.float32:
        return filled.to(dtype).contiguous(), torch.zeros(wanted, dtype=torch.float32)
    fours = filled.view(taps, depth // FOUR, FOUR, wanted).transpose(2, 3).contiguous()
    first = -_ZERO_LEVEL * filled.sum((0, 1), dtype=torch.int32)
    return fours.view(torch.int32).squeeze(3), first.to(torch.int32)


def _project(libraries: Libraries, source: Activation, projection: Tensor) -> tuple[Tensor, Tensor]:
    """Every pixel in the reduced space, rows [P, lanes], and the largest magnitude of each row."""
    channels, depth = projection.shape
    if source.index is None or source.rowptr is None:
        rows = padded_channels(dense_rows(source.x))
        lanes = ceil_div(depth, DENSE_BLOCK) * DENSE_BLOCK
        matrix = _matrix(libraries, projection, rows.shape[1], lanes)
        z = libraries.scratch("projected", (rows.shape[0], lanes))
        peak = libraries.scratch("peak", (rows.shape[0],))
        libraries(families.dense_search(), "project_dense")(
            rows.view(rows.shape[0], -1, DENSE_BLOCK),
            blocks_of(source.scale, channels, DENSE_BLOCK, 1.0),
            blocks_of(source.shift, channels, DENSE_BLOCK),
            matrix.view(-1, lanes // DENSE_BLOCK, DENSE_BLOCK),
            z.view(-1, lanes // DENSE_BLOCK, DENSE_BLOCK),
            peak,
            *limits(source.act),
        )
        return z, peak
    chosen = selection(libraries, source.index, source.rowptr)
    values = apply(libraries, source.x.contiguous(), chosen.ids, source)
    block = values.shape[1]
    blocks = ceil_div(channels, block)
    lanes = ceil_div(depth, VECTOR) * VECTOR
    matrix = _matrix(libraries, projection, blocks * block, lanes)
    z = libraries.scratch("projected", (chosen.positions, lanes))
    peak = libraries.scratch("peak", (chosen.positions,))
    libraries(families.blocked(block), f"project_{block}")(
        values,
        *chosen,
        matrix.view(blocks, block, -1, VECTOR),
        z.view(-1, lanes // VECTOR, VECTOR),
        peak,
    )
    return z, peak


def _matrix(libraries: Libraries, projection: Tensor, channels: int, lanes: int) -> Tensor:
    """A projection [C, d] as float32 [channels, lanes]."""
    missing = (0, lanes - projection.shape[1], 0, channels - projection.shape[0])

    def make(matrix: Tensor) -> Tensor:
        return F.pad(matrix.to(torch.float32), missing).contiguous()

    return libraries.remember(projection, f"matrix {channels} {lanes}", make)


def _round(
    libraries: Libraries, z: Tensor, peak: Tensor, batch: int, depth: int
) -> tuple[Tensor, Tensor]:
    """Rows [P + 1, depth] on the 8-bit scale of their sample, bytes or floats; the steps [N]."""
    size = torch.empty(1, dtype=torch.int32)
    libraries(families.dense_search(), "row_bytes")(size)
    dtype = torch.uint8 if int(size) == 1 else torch.float32
    rows = torch.empty((z.shape[0] + 1, depth), dtype=dtype)
    step = torch.empty(batch, dtype=torch.float32)
    libraries(families.dense_search(), "round_rows")(z, peak, rows, step)
    return rows, step


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
    ranking = ranking_kernel(blocks, bits)
    if tuple(tile) != (1, 1) or ranking is None or not 1 <= winners <= blocks:
        return reference.select_winners(scores, winners, out_size, tile, bits)
    rowptr = torch.arange(0, (positions + 1) * winners, winners, dtype=torch.int32)
    if bits:
        mask = torch.empty((positions, ceil_div(blocks, 8)), dtype=torch.uint8)
        libraries(families.lists(), ranking)(scores.contiguous(), mask, winners)
        return mask, rowptr
    index = torch.empty((positions, winners), dtype=torch.int32)
    libraries(families.lists(), ranking)(scores.contiguous(), index)
    return index.view(-1), rowptr


def select_above(
    libraries: Libraries, scores: Tensor, threshold: Tensor, strict: bool, bits: bool
) -> tuple[Tensor, Tensor]:
    """``dsgc::select_above``."""
    check_float32(scores)
    positions, blocks = scores.shape
    if positions == 0 or blocks == 0 or positions % max(1, threshold.shape[0]):
        return reference.select_above(scores, threshold, strict, bits)
    mask = torch.empty((positions, ceil_div(blocks, 8)), dtype=torch.uint8)
    counts = torch.empty(positions, dtype=torch.int32)
    limit = threshold.to(torch.float32).contiguous()
    mark = libraries(families.lists(), "mark_above")
    mark(scores.contiguous(), limit, mask, counts, int(strict))
    rowptr = row_pointers(counts)
    return mask if bits else selection(libraries, mask, rowptr).ids, rowptr
