"""Generated kernels behind max_pool2d and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import activate_backward, as_dense
from dsgc.codegen.cpu.layout import (
    blocks_of,
    check_float32,
    dense_rows,
    limits,
    padded_channels,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.pooling import pool_window
from dsgc.codegen.tiles import DENSE_BLOCK
from dsgc.ops.pooling import check_dense_pooling
from dsgc.ops.spec import Activation

__all__ = ["max_pool2d", "max_pool2d_backward"]


def _blocked(x: Tensor) -> Tensor:
    """A dense [N, C, H, W] as [N * H * W, blocks, 16], zero beyond the last channel."""
    if x.dtype != torch.uint8:
        check_float32(x)
    rows = padded_channels(dense_rows(x))
    return rows.view(rows.shape[0], rows.shape[1] // DENSE_BLOCK, DENSE_BLOCK)


def max_pool2d(
    libraries: Libraries,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    """``dsgc::max_pool2d``."""
    check_dense_pooling(index, kernel)
    values, (batch, channels) = _blocked(x), x.shape[:2]
    window = pool_window(size, kernel, stride, padding, ceil_mode)
    shape = (batch * window.target_area, values.shape[1], DENSE_BLOCK)
    out, argmax = libraries.empty(*shape), torch.empty(shape, dtype=torch.uint8)
    libraries(families.maps(), "max_pool_map")(
        values,
        blocks_of(scale, channels, DENSE_BLOCK, 1.0),
        blocks_of(shift, channels, DENSE_BLOCK),
        out,
        argmax,
        window.table(),
        window.source_area,
        *limits(act),
    )
    made = (channels, *window.target)
    return as_dense(out, batch, made), as_dense(argmax, batch, made)


def max_pool2d_backward(
    libraries: Libraries,
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    argmax: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dsgc::max_pool2d_backward``."""
    check_dense_pooling(index, kernel)
    upstream = _blocked(grad)
    window = pool_window(size, kernel, stride, padding, ceil_mode)
    dense = libraries.empty(x.shape[0] * window.source_area, *upstream.shape[1:])
    libraries(families.maps(), "max_pool_map_backward")(
        upstream, _blocked(argmax), dense, window.transposed().table(), window.target_area
    )
    source = Activation(x, index, rowptr, scale, shift, act, size)
    return activate_backward(libraries, as_dense(dense, x.shape[0], size), *source, own=True)
