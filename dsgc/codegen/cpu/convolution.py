"""Generated kernels behind conv2d: which one runs for which forms of input and output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import (
    apply,
    padded_source,
)
from dsgc.codegen.cpu.layout import (
    Geometry,
    Lists,
    Selection,
    blocks_of,
    by_block,
    check_float32,
    packed_selection,
    selection,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.linear import is_few_rows, row_products
from dsgc.codegen.cpu.neuron import neuron_convolution
from dsgc.codegen.cpu.weights import blocked_weight, padded_inputs
from dsgc.codegen.tiles import DENSE_BLOCK
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.ops.spec import Activation

__all__ = [
    "conv2d",
    "dense_tile",
    "forward_geometry",
    "nearly_dense",
    "packed_convolution",
]

_TILE_BYTES = 1 << 18  # of source rows that should stay in the second-level cache
_NEARLY_DENSE = 0.7  # part of the blocks present above which a packed input is read as a dense one


def nearly_dense(source: Activation) -> bool:
    """Whether it pays to read ``source`` as a dense map: it is one, or hardly any block is missing.

    The kernels of a dense input run at twice the rate of packed ones, but skip nothing.
    """
    if source.rowptr is None or source.index is None:
        return True
    block = source.x.shape[1]
    whole = (source.rowptr.shape[0] - 1) * ceil_div(source.size[0], block)
    return block > 1 and source.x.shape[0] > _NEARLY_DENSE * whole


def dense_tile(width: int) -> int:
    return max(64, 2 * _TILE_BYTES // (4 * width))


def packed_convolution(
    libraries: Libraries,
    x: Tensor,
    chosen: Selection,
    weight: Tensor,
    bias: Tensor | None,
    lists: Lists,
    slots: int,
    geometry: Geometry,
    block: int,
) -> Tensor:
    """Packed ``x`` through ``weight`` [K, C, R, S] into the slots of ``lists``: [slots, block]."""
    bi = x.shape[1]
    blocked = blocked_weight(libraries, weight, bi, block)
    out = libraries.empty(slots, block)
    libraries(families.convolution(bi, block), f"packed_convolution_{bi}_{block}")(
        x,
        *chosen,
        blocked,
        blocks_of(bias, weight.shape[0], block),
        *lists,
        out,
        geometry.table(),
        geometry.source_area,
    )
    return out


def forward_geometry(
    source: Activation,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Geometry:
    kernel = weight.shape[2:]
    target = conv_output_size(source.size, kernel, stride, padding, dilation)
    return Geometry.forward(source.size[1:], target, kernel, stride, padding, dilation)


def conv2d(
    libraries: Libraries,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    y_index: Tensor,
    y_rowptr: Tensor,
    block: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``dsgc::conv2d``."""
    check_float32(x)
    check_float32(weight)
    source = Activation(x, index, rowptr, scale, shift, act, size)
    geometry = forward_geometry(source, weight, stride, padding, dilation)
    outputs = weight.shape[0]
    target = selection(libraries, y_index, y_rowptr)
    slots = target.ids.shape[0]
    if is_few_rows(weight, target, block, geometry):
        return row_products(libraries, source, weight, bias, target, block)
    if block == 1:
        return neuron_convolution(libraries, source, weight, bias, target, geometry)
    blocks = ceil_div(outputs, block)
    if nearly_dense(source):
        rows = padded_source(libraries, source)
        tile = dense_tile(rows.shape[1])
        lists = by_block(libraries, target, blocks, geometry.target_area, tile)
        return _dense_convolution(libraries, rows, weight, bias, lists, slots, geometry, block)
    lists = by_block(libraries, target, blocks, geometry.target_area)
    chosen = packed_selection(libraries, source)
    values = apply(libraries, x.contiguous(), chosen.ids, source)
    return packed_convolution(
        libraries, values, chosen, weight, bias, lists, slots, geometry, block
    )


def _dense_convolution(
    libraries: Libraries,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lists: Lists,
    slots: int,
    geometry: Geometry,
    block: int,
) -> Tensor:
    padded = padded_inputs(weight, rows.shape[1])
    out = libraries.empty(slots, block)
    libraries(families.dense(block), f"dense_convolution_{block}")(
        rows,
        blocked_weight(libraries, padded, DENSE_BLOCK, block).flatten(2, 3),
        blocks_of(bias, weight.shape[0], block),
        *lists,
        out,
        geometry.table(),
        geometry.source_area,
    )
    return out
