"""Generated kernels behind the gradients of conv2d."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import (
    activate_backward,
    apply,
    apply_backward,
    as_dense,
    channel_totals,
    padded_source,
)
from dsgc.codegen.cpu.convolution import (
    dense_tile,
    forward_geometry,
    nearly_dense,
    packed_convolution,
)
from dsgc.codegen.cpu.few_rows import few_rows_weight_gradient
from dsgc.codegen.cpu.layout import (
    Geometry,
    Selection,
    by_block,
    check_float32,
    marked_blocks,
    packed_selection,
    padded_channels,
    selection,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.linear import is_few_rows, row_data_gradient, row_lists
from dsgc.codegen.cpu.linear_pairs import pair_data_gradient, takes_pairs
from dsgc.codegen.cpu.neuron import (
    neuron_convolution,
    neuron_data_gradient,
    neuron_weight_gradient,
)
from dsgc.codegen.cpu.schedules import Layer, Schedule, each_schedule
from dsgc.codegen.cpu.weights import blocked_weight, filled_gradient, plain_weight
from dsgc.codegen.tiles import DENSE_BLOCK, GROUP, gradient_block
from dsgc.ops.layout import ceil_div
from dsgc.ops.spec import Activation

__all__ = ["conv2d_backward"]

_PARTIAL_BYTES = 1 << 24  # of partial sums of a weight gradient
_LIST_POSITIONS = 1024  # target positions of a list of the dense data gradient, at least a sample's
_DENSER = 1.5
_INFINITY = float("inf")


def conv2d_backward(
    libraries: Libraries,
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    weight: Tensor,
    y_index: Tensor,
    y_rowptr: Tensor,
    block: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``dsgc::conv2d_backward``."""
    check_float32(grad)
    source = Activation(x, index, rowptr, scale, shift, act, size)
    geometry = forward_geometry(source, weight, stride, padding, dilation)
    target = selection(libraries, y_index, y_rowptr)
    upstream = grad.contiguous()
    dx, dscale, dshift, dweight, dbias = (grad.new_empty(0) for _ in range(5))
    if need_weight:
        dweight = _weight_gradient(libraries, upstream, source, weight, target, geometry)
    if need_bias:
        outputs = weight.shape[0]
        zero = torch.zeros((ceil_div(outputs, block), block), dtype=torch.float32)
        totals = channel_totals(libraries, upstream, target.ids, zero, -_INFINITY)
        dbias = totals[0].reshape(-1)[:outputs].clone()
    if need_x:
        dx, dscale, dshift = _data_gradient(libraries, upstream, source, weight, target, geometry)
    return dx, dscale, dshift, dweight, dbias


def _weight_gradient(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    weight: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    block, (outputs, inputs) = grad.shape[1], weight.shape[:2]
    if is_few_rows(weight, target, block, geometry):
        return few_rows_weight_gradient(libraries, grad, source, weight, target)
    if block == 1:
        return neuron_weight_gradient(libraries, grad, source, weight, target, geometry)
    if nearly_dense(source):
        return _dense_weight_gradient(libraries, grad, source, weight, target, geometry)
    chosen = packed_selection(libraries, source)
    values = apply(libraries, source.x.contiguous(), chosen.ids, source)
    layer = Layer(geometry, inputs, outputs, source.x.shape[1], block, chosen, target)
    return _packed_weight_gradient(libraries, grad, values, weight, layer)


def _dense_weight_gradient(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    weight: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    block, taps = grad.shape[1], weight[0, 0].numel()
    blocks = ceil_div(weight.shape[0], block)
    rows = padded_source(libraries, source)
    tile = dense_tile(rows.shape[1])
    lists = by_block(libraries, target, blocks, geometry.target_area, tile)
    kernel = libraries(families.dense(block), f"dense_weight_gradient_{block}")
    parts = rows.view(rows.shape[0], rows.shape[1] // DENSE_BLOCK, DENSE_BLOCK)
    where = geometry.table(), geometry.source_area

    def fill(total: Tensor) -> None:
        tiles = ceil_div(target.positions, tile)
        if not tiles:
            total.zero_()
            return
        partials = max(1, min(_PARTIAL_BYTES // (4 * total.numel()), tiles))
        splits = max(1, min(blocks, 16 // partials))
        if partials == 1:
            kernel(parts, grad, *lists, total.unsqueeze(0), splits, *where)
            return
        out = libraries.scratch("partial", (partials, *total.shape))
        kernel(parts, grad, *lists, out, splits, *where)
        torch.sum(out, 0, out=total)

    shape = (blocks, block, taps, *parts.shape[1:])
    return filled_gradient(libraries, weight, shape, fill)


def _packed_weight_gradient(
    libraries: Libraries, grad: Tensor, values: Tensor, weight: Tensor, layer: Layer
) -> Tensor:
    bi, bo, geometry = layer.bi, layer.bo, layer.geometry
    blocks, taps = ceil_div(layer.outputs, bo), weight[0, 0].numel()
    kernel = libraries(families.convolution(bi, bo), f"packed_weight_gradient_{bi}_{bo}")
    read = marked_blocks(libraries, layer.source, ceil_div(layer.inputs, bi)), layer.source.rowptr
    where = geometry.table(), geometry.source_area

    def run(out: Tensor, schedule: Schedule) -> None:
        area, length = geometry.target_area, schedule.length
        lists = by_block(libraries, layer.target, blocks, area, length=length)
        kernel(values, *read, grad, *lists, out, *where, schedule.chunk)

    def fill(out: Tensor) -> None:
        libraries.tuner.run(layer.key("weight gradient"), each_schedule(partial(run, out)))

    blocks_in, (by_input, depth, lanes) = ceil_div(layer.inputs, bi), gradient_block(bi, bo)
    if by_input:
        shape = (blocks, depth, taps, blocks_in, lanes)
        return filled_gradient(
            libraries, weight, shape, lambda stored: fill(stored.permute(0, 2, 3, 1, 4))
        )
    out = libraries.scratch("gradient", (blocks, taps, blocks_in, depth, lanes))
    fill(out)
    return plain_weight(libraries, out, weight)


def _data_gradient(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    weight: Tensor,
    target: Selection,
    geometry: Geometry,
) -> tuple[Tensor, Tensor, Tensor]:
    """Through the convolution and the source's activation; ``geometry`` is the forward one."""
    if _wants_every_channel(libraries, grad, source, weight, target, geometry):
        rows = _gradient_rows(libraries, grad, weight, target, geometry)
        return _from_rows(libraries, rows, source)
    chosen = packed_selection(libraries, source)
    (outputs, inputs), bi, bo = weight.shape[:2], source.x.shape[1], grad.shape[1]
    swapped, backward = weight.detach().transpose(0, 1), geometry.transposed()
    if is_few_rows(weight, target, bo, geometry):
        lists = row_lists(libraries, weight, target, bo)
        dx = pair_data_gradient(libraries, grad, source, weight, lists)
    elif bi == 1:
        size = (outputs, 1, 1)
        upstream = Activation(grad, target.ids, target.rowptr, None, None, "identity", size)
        dx = neuron_convolution(libraries, upstream, swapped, None, chosen, backward)
    else:
        layer = Layer(backward, outputs, inputs, bo, bi, target, chosen)
        dx = packed_convolution(libraries, "data gradient", grad, swapped, None, layer)
    return apply_backward(libraries, dx, source.x.contiguous(), chosen.ids, source, own=True)


def _wants_every_channel(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    weight: Tensor,
    target: Selection,
    geometry: Geometry,
) -> bool:
    """Whether all of the source's channels are present, or it costs less to get the gradient of all
    than of those that are.
    """
    block = grad.shape[1]
    if source.index is None:
        return True
    if is_few_rows(weight, target, block, geometry):
        return not takes_pairs(source, block)
    if block > 1:
        return nearly_dense(source)
    if source.x.shape[1] > 1:
        return False
    # All neurons of the source from the target's few, or each present one from all of the target.
    outputs, inputs = weight.shape[:2]
    read = packed_selection(libraries, source).density(inputs)
    return read > _DENSER * target.density(outputs)


def _gradient_rows(
    libraries: Libraries,
    grad: Tensor,
    weight: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    """The gradient of every input channel, selected or not: rows [P, C or more]."""
    block = grad.shape[1]
    if is_few_rows(weight, target, block, geometry):
        lists = row_lists(libraries, weight, target, block)
        return row_data_gradient(libraries, grad, target.positions, weight, lists)
    batch = target.positions // geometry.target_area
    if block == 1:
        positions, backward = batch * geometry.source_area, geometry.transposed()
        return neuron_data_gradient(libraries, grad, positions, weight, target, backward)
    return _dense_data_gradient(libraries, grad, batch, weight, target, geometry)


def _dense_data_gradient(
    libraries: Libraries,
    grad: Tensor,
    batch: int,
    weight: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    (outputs, inputs), block, area = weight.shape[:2], grad.shape[1], geometry.target_area
    # Enough samples a task that the positions of a list are worth a block of weights.
    samples = max(1, min(batch, _LIST_POSITIONS // area))
    lists = by_block(libraries, target, ceil_div(outputs, block), area, tile=samples * area)
    blocks = ceil_div(inputs, DENSE_BLOCK)
    groups = ceil_div(blocks, GROUP)
    group = ceil_div(blocks, groups)
    swapped = weight.detach().transpose(0, 1)
    shape = (batch * geometry.source_area, groups, group, DENSE_BLOCK)
    dx = libraries.empty(*shape)
    libraries(families.dense(block), f"dense_data_gradient_{block}")(
        grad,
        blocked_weight(libraries, swapped, block, DENSE_BLOCK, groups * group, visits=1),
        *lists,
        dx,
        geometry.table(),
        geometry.source_area,
        samples * geometry.source_area,
    )
    return dx.flatten(1)


def _from_rows(
    libraries: Libraries, rows: Tensor, source: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the gradient of every channel, rows [P, C or more], what the source holds; and through its
    activation.
    """
    if source.index is None:
        dense = as_dense(rows, source.x.shape[0], source.size, rows.shape[1])
        if source.act == "identity":
            return dense, dense.new_empty(0), dense.new_empty(0)
        return activate_backward(libraries, dense, *source, own=True)
    chosen = packed_selection(libraries, source)
    block = source.x.shape[1]
    padded = padded_channels(rows, block)
    dx = libraries.empty(*source.x.shape)
    libraries(families.blocked(block), f"pack_{block}")(
        padded.view(padded.shape[0], padded.shape[1] // block, block), *chosen, dx
    )
    return apply_backward(libraries, dx, source.x.contiguous(), chosen.ids, source, own=True)
