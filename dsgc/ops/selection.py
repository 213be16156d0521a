"""drs_scores, select_winners and select_above: which blocks to compute. No gradient flows."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.ops.spec import (
    ACT_SCHEMA,
    GEOMETRY_SCHEMA,
    OpSpec,
    no_gradient,
    not_differentiable,
)

__all__ = ["SPECS"]


def _fake_scores(
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
    batch = x.shape[0] if rowptr is None else (rowptr.shape[0] - 1) // (size[1] * size[2])
    height, width = conv_output_size(size, kernel, stride, padding, dilation)
    return x.new_empty((batch * height * width, ceil_div(out_channels, block)))


def _fake_winners(
    scores: Tensor, winners: int, out_size: Sequence[int], tile: Sequence[int], bits: bool
) -> tuple[Tensor, Tensor]:
    positions, blocks = scores.shape
    rowptr = scores.new_empty(positions + 1, dtype=torch.int32)
    if bits:
        return scores.new_empty((positions, ceil_div(blocks, 8)), dtype=torch.uint8), rowptr
    return scores.new_empty(positions * winners, dtype=torch.int32), rowptr


def _fake_above(
    scores: Tensor, threshold: Tensor, strict: bool, bits: bool
) -> tuple[Tensor, Tensor]:
    positions, blocks = scores.shape
    rowptr = scores.new_empty(positions + 1, dtype=torch.int32)
    if bits:
        return scores.new_empty((positions, ceil_div(blocks, 8)), dtype=torch.uint8), rowptr
    nnz = torch.library.get_ctx().new_dynamic_size()
    return scores.new_empty((nnz,), dtype=torch.int32), rowptr


SPECS = (
    OpSpec(
        "drs_scores",
        f"({ACT_SCHEMA}, Tensor projection, Tensor projected, Tensor? unit, Tensor? offset, "
        f"int out_channels, int block, int[2] kernel, {GEOMETRY_SCHEMA}) -> Tensor",
        _fake_scores,
        not_differentiable,
        no_gradient,
    ),
    OpSpec(
        "select_winners",
        "(Tensor scores, int winners, int[2] out_size, int[2] tile, bool bits) -> (Tensor, Tensor)",
        _fake_winners,
        not_differentiable,
        no_gradient,
    ),
    OpSpec(
        "select_above",
        "(Tensor scores, Tensor threshold, bool strict, bool bits) -> (Tensor, Tensor)",
        _fake_above,
        not_differentiable,
        no_gradient,
    ),
)
