"""Generated kernels behind conv2d: which one runs for which forms of input and output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import apply, padded_source
from dsgc.codegen.cpu.few_rows import few_rows_products
from dsgc.codegen.cpu.layout import (
    Geometry,
    Selection,
    blocks_of,
    by_block,
    check_float32,
    marked_blocks,
    packed_selection,
    part_present,
    selection,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.linear import is_few_rows
from dsgc.codegen.cpu.neuron import neuron_convolution
from dsgc.codegen.cpu.schedules import CHUNK, Layer, Schedule, each_schedule
from dsgc.codegen.cpu.weights import blocked_weight, in_place, padded_inputs
from dsgc.codegen.tiles import DENSE_BLOCK
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.ops.spec import Activation

__all__ = [
    "NEARLY_DENSE",
    "conv2d",
    "dense_tile",
    "forward_geometry",
    "nearly_dense",
    "packed_convolution",
]

_TILE_BYTES = 1 << 18  # of source rows that should stay in the second-level cache
NEARLY_DENSE = 0.7  # part of the blocks present above which a packed input is read as a dense one


def nearly_dense(source: Activation) -> bool:
    """Whether it pays to read ``source`` as a dense map: it is one, or hardly any block is missing.

    The kernels of a dense input run at twice the rate of packed ones, but skip nothing.
    """
    if source.rowptr is None:
        return True
    return source.x.shape[1] > 1 and part_present(source) > NEARLY_DENSE


def dense_tile(width: int) -> int:
    return max(64, 2 * _TILE_BYTES // (4 * width))


def packed_convolution(
    libraries: Libraries,
    work: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layer: Layer,
) -> Tensor:
    """Packed ``x`` through ``weight`` [K, C, R, S] into the slots of the layer's target: [slots,
    bo].

    ``work`` names what it is for.
    """
    bi, bo, target = layer.bi, layer.bo, layer.target
    blocks, area = ceil_div(layer.outputs, bo), layer.geometry.target_area
    visits = target.ids.shape[0] / max(1, blocks * CHUNK)
    first = blocks_of(bias, layer.outputs, bo)
    name = f"packed_convolution_{bi}_{bo}"
    blocked = in_place(weight, bi, bo, visits)
    if blocked is not None:
        kernel = libraries(families.convolution_in_place(bi, bo), f"{name}_in_place")
    else:
        blocked = blocked_weight(libraries, weight, bi, bo, visits=visits)
        kernel = libraries(families.convolution(bi, bo), name)
    read = marked_blocks(libraries, layer.source, ceil_div(layer.inputs, bi)), layer.source.rowptr

    def run(schedule: Schedule) -> Tensor:
        lists = by_block(libraries, target, blocks, area, length=schedule.length)
        out = libraries.empty(target.ids.shape[0], bo)
        where = layer.geometry.table(), layer.geometry.source_area
        kernel(x, *read, blocked, first, *lists, out, *where, schedule.chunk)
        return out

    return libraries.tuner.run(layer.key(work), each_schedule(run))


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
    outputs, inputs = weight.shape[:2]
    target = selection(libraries, y_index, y_rowptr)
    if is_few_rows(weight, target, block, geometry):
        return few_rows_products(libraries, source, weight, bias, target, block)
    if block == 1:
        return neuron_convolution(libraries, source, weight, bias, target, geometry)
    if nearly_dense(source):
        return _dense_convolution(libraries, source, weight, bias, target, geometry, block)
    chosen = packed_selection(libraries, source)
    values = apply(libraries, x.contiguous(), chosen.ids, source)
    layer = Layer(geometry, inputs, outputs, x.shape[1], block, chosen, target)
    return packed_convolution(libraries, "forward", values, weight, bias, layer)


def _dense_convolution(
    libraries: Libraries,
    source: Activation,
    weight: Tensor,
    bias: Tensor | None,
    target: Selection,
    geometry: Geometry,
    block: int,
) -> Tensor:
    rows = padded_source(libraries, source)
    outputs, (area, width) = weight.shape[0], (geometry.target_area, rows.shape[1])
    lists = by_block(libraries, target, ceil_div(outputs, block), area, dense_tile(width))
    tiles = ceil_div(target.positions, dense_tile(width))
    name = f"dense_convolution_{block}"
    stored = in_place(weight, DENSE_BLOCK, block, tiles) if width == weight.shape[1] else None
    if stored is not None:
        kernel = libraries(families.dense_in_place(block), f"{name}_in_place")
        blocked = stored.permute(0, 1, 2, 4, 3).flatten(2, 3)
    else:
        kernel = libraries(families.dense(block), name)
        padded = padded_inputs(weight, width)
        blocked = blocked_weight(libraries, padded, DENSE_BLOCK, block).flatten(2, 3)
    out = libraries.empty(target.ids.shape[0], block)
    first = blocks_of(bias, outputs, block)
    kernel(rows, blocked, first, *lists, out, geometry.table(), geometry.source_area)
    return out
