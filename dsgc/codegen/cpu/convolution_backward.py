"""Generated kernels behind the gradients of conv2d."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

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
from dsgc.codegen.cpu.layout import (
    Geometry,
    Selection,
    by_block,
    check_float32,
    packed_selection,
    padded_channels,
    selection,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.cpu.linear import is_few_rows, row_data_gradient, row_weight_gradient
from dsgc.codegen.cpu.neuron import (
    neuron_convolution,
    neuron_data_gradient,
    neuron_weight_gradient,
)
from dsgc.codegen.cpu.schedules import Layer, Schedule, each_schedule
from dsgc.codegen.cpu.weights import blocked_weight, plain_weight
from dsgc.codegen.tiles import DENSE_BLOCK, GROUP
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
        zero = torch.zeros((ceil_div(outputs, block), block))
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
        return row_weight_gradient(libraries, grad, source, weight, target)
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
    shape = (blocks, taps, rows.shape[1], block)
    partials = max(1, min(_PARTIAL_BYTES // (4 * prod(shape)), ceil_div(target.positions, tile)))
    out = libraries.scratch("partial", (partials, *shape))
    splits = max(1, min(blocks, 16 // partials))
    libraries(families.dense(block), f"dense_weight_gradient_{block}")(
        rows, grad, *lists, out, splits, geometry.table(), geometry.source_area
    )
    total = out[0] if partials == 1 else out.sum(0)
    return plain_weight(libraries, total.view(blocks, taps, -1, DENSE_BLOCK, block), weight)


def _packed_weight_gradient(
    libraries: Libraries, grad: Tensor, values: Tensor, weight: Tensor, layer: Layer
) -> Tensor:
    bi, bo, geometry = layer.bi, layer.bo, layer.geometry
    blocks, taps = ceil_div(layer.outputs, bo), weight[0, 0].numel()
    out = libraries.scratch("partial", (blocks, taps, ceil_div(layer.inputs, bi), bi, bo))
    kernel = libraries(families.convolution(bi, bo), f"packed_weight_gradient_{bi}_{bo}")
    where = geometry.table(), geometry.source_area

    def run(schedule: Schedule) -> None:
        area, length = geometry.target_area, schedule.length
        lists = by_block(libraries, layer.target, blocks, area, length=length)
        kernel(values, *layer.source, grad, *lists, out, *where, schedule.chunk)

    libraries.tuner.run(layer.key("weight gradient"), each_schedule(run))
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
    swapped = weight.detach().transpose(0, 1)
    inputs = swapped.shape[0]
    if is_few_rows(weight, target, grad.shape[1], geometry):
        rows = row_data_gradient(libraries, grad, source, weight, target)
        if source.index is not None:
            return _selected_gradient(libraries, rows, source)
        dense = as_dense(rows, source.x.shape[0], source.size, 1)
        return _activated_gradient(libraries, dense, source)
    if source.index is None or source.rowptr is None:
        dense = _dense_data_gradient(libraries, grad, source, swapped, target, geometry)
        return _activated_gradient(libraries, dense, source)
    backward = geometry.transposed()
    chosen = selection(libraries, source.index, source.rowptr)
    bi = source.x.shape[1]
    if bi == 1 and grad.shape[1] == 1 and _is_denser(chosen, inputs, target, weight.shape[0]):
        rows = neuron_data_gradient(libraries, grad, chosen.positions, weight, target, backward)
        return _selected_gradient(libraries, rows, source)
    if bi == 1:
        upstream = Activation(
            grad, target.ids, target.rowptr, None, None, "identity", (weight.shape[0], 1, 1)
        )
        dx = neuron_convolution(libraries, upstream, swapped, None, chosen, backward)
        return apply_backward(libraries, dx, source.x.contiguous(), chosen.ids, source, own=True)
    if nearly_dense(source) and grad.shape[1] > 1:
        batch = target.positions // geometry.target_area
        rows = _gradient_rows(libraries, grad, source.size, batch, swapped, target, geometry)
        return _selected_gradient(libraries, rows, source)
    layer = Layer(backward, weight.shape[0], inputs, grad.shape[1], bi, target, chosen)
    dx = packed_convolution(libraries, "data gradient", grad, swapped, None, layer)
    return apply_backward(libraries, dx, source.x.contiguous(), chosen.ids, source, own=True)


def _is_denser(source: Selection, inputs: int, target: Selection, outputs: int) -> bool:
    """Whether so many of the source's neurons are present that it costs less to get the gradient of
    all of them from the target's few than of each from all of the target's.
    """
    read = source.ids.shape[0] / max(1, source.positions * inputs)
    made = target.ids.shape[0] / max(1, target.positions * outputs)
    return read > _DENSER * made


def _dense_data_gradient(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    swapped: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    """The gradient of a dense input, where every channel is a target; ``geometry`` goes from output
    to input pixels.
    """
    batch = source.x.shape[0]
    if grad.shape[1] == 1:
        weight, backward = swapped.transpose(0, 1), geometry.transposed()
        positions = batch * source.size[1] * source.size[2]
        rows = neuron_data_gradient(libraries, grad, positions, weight, target, backward)
        return as_dense(rows, batch, source.size, rows.shape[1])
    rows = _gradient_rows(libraries, grad, source.size, batch, swapped, target, geometry)
    return as_dense(rows, batch, source.size, GROUP * DENSE_BLOCK)


def _gradient_rows(
    libraries: Libraries,
    grad: Tensor,
    size: Sequence[int],
    batch: int,
    swapped: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    """The gradient of every input channel, rows [P, width]."""
    area, block = geometry.target_area, grad.shape[1]
    # Enough samples a task that the positions of a list are worth a block of weights.
    samples = max(1, min(batch, _LIST_POSITIONS // max(area, 1)))
    blocks = ceil_div(swapped.shape[1], block)
    lists = by_block(libraries, target, blocks, area, tile=max(1, samples * area))
    groups = ceil_div(size[0], DENSE_BLOCK * GROUP)
    weight = blocked_weight(libraries, swapped, block, DENSE_BLOCK, groups * GROUP)
    shape = (batch * size[1] * size[2], groups, GROUP, DENSE_BLOCK)
    dx = libraries.empty(*shape)
    libraries(families.dense(block), f"dense_data_gradient_{block}")(
        grad,
        weight,
        *lists,
        dx,
        geometry.table(),
        geometry.source_area,
        samples * geometry.source_area,
    )
    return dx.view(shape[0], -1)


def _activated_gradient(
    libraries: Libraries, dense: Tensor, source: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """Through the activation of a dense source; ``dense`` is used up."""
    if source.act == "identity":
        return dense, dense.new_empty(0), dense.new_empty(0)
    return activate_backward(libraries, dense, *source, own=True)


def _selected_gradient(
    libraries: Libraries, rows: Tensor, source: Activation
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the gradient of every channel, rows [P, C or more], what a packed source selected; and
    through its activation.
    """
    chosen = packed_selection(libraries, source)
    block = source.x.shape[1]
    rows = padded_channels(rows, block)
    dx = libraries.empty(*source.x.shape)
    libraries(families.blocked(block), f"pack_{block}")(
        rows.view(rows.shape[0], -1, block), *chosen, dx
    )
    return apply_backward(libraries, dx, source.x.contiguous(), chosen.ids, source, own=True)
