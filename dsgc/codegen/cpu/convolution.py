"""Generated kernels behind conv2d and its gradient: which kernel runs for which forms of input and
output.
"""

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
from dsgc.codegen.cpu.layout import (
    Geometry,
    Lists,
    Selection,
    blocks_of,
    by_block,
    check_float32,
    every_block,
    packed_selection,
    selection,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.tiles import DENSE_BLOCK, GROUP, NEURON_LANES
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.ops.spec import Activation

__all__ = ["conv2d", "conv2d_backward"]

_TILE_BYTES = 1 << 18  # of source rows that should stay in the second-level cache
_NEARLY_DENSE = 0.7  # part of the blocks present above which a packed input is read as a dense one
_PARTIAL_BYTES = 1 << 24  # of partial sums of a weight gradient
_INFINITY = float("inf")


def _nearly_dense(source: Activation) -> bool:
    """Whether it pays to read ``source`` as a dense map: it is one, or hardly any block is missing.

    The kernels of a dense input run at twice the rate of packed ones, but skip nothing.
    """
    if source.rowptr is None or source.index is None:
        return True
    block = source.x.shape[1]
    whole = (source.rowptr.shape[0] - 1) * ceil_div(source.size[0], block)
    return block > 1 and source.x.shape[0] > _NEARLY_DENSE * whole


def _dense_tile(width: int) -> int:
    return max(64, 2 * _TILE_BYTES // (4 * width))


def _neuron_tile(width: int) -> int:
    return max(64, _TILE_BYTES // (4 * width))


def _blocked_weight(
    libraries: Libraries, weight: Tensor, bi: int, bo: int, blocks: int | None = None
) -> Tensor:
    """``weight`` [K, C, R, S] as [K / bo, R * S, C / bi, bi, bo], zero beyond K; ``blocks`` asks
    for more of K / bo.
    """
    flat = weight.detach().flatten(2)
    outputs, inputs, taps = flat.shape
    shape = (blocks or ceil_div(outputs, bo), taps, ceil_div(inputs, bi), bi, bo)
    out = libraries.scratch("weight", shape)
    libraries(_weight_family(bi, bo), f"block_weights_{bi}_{bo}{_form(flat)}")(flat, out)
    return out


def _plain_weight(libraries: Libraries, blocked: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`_blocked_weight`, shaped like ``like`` and stored in its order."""
    bi, bo = blocked.shape[3:]
    out = libraries.empty_like(like)
    flat = out.flatten(2)
    libraries(_weight_family(bi, bo), f"unblock_weights_{bi}_{bo}{_form(flat)}")(blocked, flat)
    return out


def _form(weight: Tensor) -> str:
    """Which channels of a flat weight [K, C, taps] lie side by side: the suffix of a kernel."""
    return "_by_input" if weight.stride(1) == 1 else "_by_output" if weight.stride(0) == 1 else ""


def _weight_family(bi: int, bo: int) -> families.Family:
    if bo == 1:
        return families.neuron()
    return families.dense(bo) if bi == 1 else families.convolution(bi, bo)


def _packed_convolution(
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
    blocked = _blocked_weight(libraries, weight, bi, block)
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


def _neuron_convolution(
    libraries: Libraries,
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lists: Lists,
    slots: int,
    geometry: Geometry,
) -> Tensor:
    """Dense ``rows`` [P + 1, width] through ``weight`` into single neurons: [slots, 1]."""
    blocked = _blocked_weight(libraries, _pad_inputs(weight, rows.shape[1]), NEURON_LANES, 1)
    out = libraries.empty(slots, 1)
    libraries(families.neuron(), "neuron_convolution")(
        rows.view(rows.shape[0], -1, NEURON_LANES),
        blocked.view(*blocked.shape[:4]),
        blocks_of(bias, weight.shape[0], 1).view(-1),
        *lists,
        out.view(-1),
        geometry.table(),
        geometry.source_area,
    )
    return out


def _forward_geometry(
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
    geometry = _forward_geometry(source, weight, stride, padding, dilation)
    outputs = weight.shape[0]
    target = selection(libraries, y_index, y_rowptr)
    slots = target.ids.shape[0]
    if block == 1:
        rows = padded_source(libraries, source)
        tile = _neuron_tile(rows.shape[1])
        lists = by_block(libraries, target, outputs, geometry.target_area, tile)
        return _neuron_convolution(libraries, rows, weight, bias, lists, slots, geometry)
    blocks = ceil_div(outputs, block)
    if _nearly_dense(source):
        rows = padded_source(libraries, source)
        tile = _dense_tile(rows.shape[1])
        lists = by_block(libraries, target, blocks, geometry.target_area, tile)
        return _dense_convolution(libraries, rows, weight, bias, lists, slots, geometry, block)
    lists = by_block(libraries, target, blocks, geometry.target_area)
    chosen = packed_selection(libraries, source)
    values = apply(libraries, x.contiguous(), chosen.ids, source)
    return _packed_convolution(
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
    padded = _pad_inputs(weight, rows.shape[1])
    out = libraries.empty(slots, block)
    libraries(families.dense(block), f"dense_convolution_{block}")(
        rows,
        _blocked_weight(libraries, padded, 1, block).squeeze(3),
        blocks_of(bias, weight.shape[0], block),
        *lists,
        out,
        geometry.table(),
        geometry.source_area,
    )
    return out


def _pad_inputs(weight: Tensor, channels: int) -> Tensor:
    if weight.shape[1] == channels:
        return weight
    out = weight.new_zeros((weight.shape[0], channels, *weight.shape[2:]))
    out[:, : weight.shape[1]] = weight.detach()
    return out


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
    geometry = _forward_geometry(source, weight, stride, padding, dilation)
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
    blocks, taps = ceil_div(outputs, block), weight[0, 0].numel()
    where = geometry.table(), geometry.source_area
    if block == 1:
        rows = padded_source(libraries, source)
        vectors = rows.shape[1] // NEURON_LANES
        tile = _neuron_tile(rows.shape[1])
        lists = by_block(libraries, target, outputs, geometry.target_area, tile)
        out = libraries.empty(outputs, taps, vectors, NEURON_LANES)
        libraries(families.neuron(), "neuron_weight_gradient")(
            rows.view(-1, vectors, NEURON_LANES), grad.view(-1), *lists, out, *where
        )
        return _plain_weight(libraries, out.unsqueeze(-1), weight)
    if _nearly_dense(source):
        rows = padded_source(libraries, source)
        tile = _dense_tile(rows.shape[1])
        lists = by_block(libraries, target, blocks, geometry.target_area, tile)
        shape = (blocks, taps, rows.shape[1], block)
        partials = max(
            1, min(_PARTIAL_BYTES // (4 * prod(shape)), ceil_div(target.positions, tile))
        )
        out = libraries.scratch("partial", (partials, *shape))
        libraries(families.dense(block), f"dense_weight_gradient_{block}")(
            rows, grad, *lists, out, max(1, min(blocks, 16 // partials)), *where
        )
        total = out[0] if partials == 1 else out.sum(0)
        return _plain_weight(libraries, total.unsqueeze(3)[:, :, :inputs].contiguous(), weight)
    lists = by_block(libraries, target, blocks, geometry.target_area)
    chosen = packed_selection(libraries, source)
    values = apply(libraries, source.x.contiguous(), chosen.ids, source)
    bi = values.shape[1]
    out = libraries.scratch("partial", (blocks, taps, ceil_div(inputs, bi), bi, block))
    libraries(families.convolution(bi, block), f"packed_weight_gradient_{bi}_{block}")(
        values, *chosen, grad, *lists, out, *where
    )
    return _plain_weight(libraries, out, weight)


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
    if source.index is None or source.rowptr is None:
        dense = _dense_data_gradient(libraries, grad, source, swapped, target, geometry)
        if source.act == "identity":
            return dense, grad.new_empty(0), grad.new_empty(0)
        return activate_backward(libraries, dense, *source)
    if _nearly_dense(source) and grad.shape[1] > 1:
        return _nearly_dense_gradient(libraries, grad, source, swapped, target, geometry)
    backward = geometry.transposed()
    chosen = selection(libraries, source.index, source.rowptr)
    bi, slots = source.x.shape[1], chosen.ids.shape[0]
    if bi == 1:
        upstream = Activation(
            grad, target.ids, target.rowptr, None, None, "identity", (weight.shape[0], 1, 1)
        )
        rows = padded_source(libraries, upstream)
        tile = _neuron_tile(rows.shape[1])
        lists = by_block(libraries, chosen, inputs, backward.target_area, tile)
        dx = _neuron_convolution(libraries, rows, swapped, None, lists, slots, backward)
    else:
        lists = by_block(libraries, chosen, ceil_div(inputs, bi), backward.target_area)
        dx = _packed_convolution(libraries, grad, target, swapped, None, lists, slots, backward, bi)
    return apply_backward(libraries, dx, source.x.contiguous(), chosen.ids, source)


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
        return _neuron_data_gradient(
            libraries, grad, source, swapped, target, geometry.transposed()
        )
    # With an activation still to come this gradient does not leave the operator.
    kept = source.act == "identity"
    rows = _gradient_rows(libraries, grad, source.size, batch, swapped, target, geometry, kept)
    return as_dense(rows, batch, source.size, GROUP * DENSE_BLOCK)


def _gradient_rows(
    libraries: Libraries,
    grad: Tensor,
    size: Sequence[int],
    batch: int,
    swapped: Tensor,
    target: Selection,
    geometry: Geometry,
    kept: bool,
) -> Tensor:
    """The gradient of every input channel, rows [P, width]; in scratch memory unless ``kept``."""
    area, block = geometry.target_area, grad.shape[1]
    lists = by_block(libraries, target, ceil_div(swapped.shape[1], block), area, tile=area)
    groups = ceil_div(size[0], DENSE_BLOCK * GROUP)
    weight = _blocked_weight(libraries, swapped, block, DENSE_BLOCK, groups * GROUP)
    shape = (batch * size[1] * size[2], groups, GROUP, DENSE_BLOCK)
    dx = libraries.empty(*shape) if kept else libraries.scratch("gradient", shape)
    libraries(families.dense(block), f"dense_data_gradient_{block}")(
        grad,
        weight,
        lists.start,
        lists.slot,
        lists.pixel,
        dx,
        geometry.table(),
        geometry.source_area,
    )
    return dx.view(shape[0], -1)


def _nearly_dense_gradient(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    swapped: Tensor,
    target: Selection,
    geometry: Geometry,
) -> tuple[Tensor, Tensor, Tensor]:
    """For a packed source that hardly leaves a block out: every channel, then what is selected."""
    chosen = packed_selection(libraries, source)
    batch, block = chosen.positions // geometry.source_area, source.x.shape[1]
    rows = _gradient_rows(libraries, grad, source.size, batch, swapped, target, geometry, False)
    dx = libraries.empty(*source.x.shape)
    libraries(families.blocked(block), f"pack_{block}")(
        rows.view(rows.shape[0], -1, block), *chosen, dx
    )
    return apply_backward(libraries, dx, source.x.contiguous(), chosen.ids, source)


def _neuron_data_gradient(
    libraries: Libraries,
    grad: Tensor,
    source: Activation,
    swapped: Tensor,
    target: Selection,
    geometry: Geometry,
) -> Tensor:
    """The gradient of a dense input from single neurons: a packed convolution that selects every
    input block.
    """
    batch, (channels, height, width) = source.x.shape[0], source.size
    blocks = ceil_div(channels, DENSE_BLOCK)
    everything = every_block(batch * height * width, blocks)
    lists = by_block(libraries, everything, blocks, geometry.target_area)
    slots = everything.ids.shape[0]
    values = _packed_convolution(
        libraries, grad, target, swapped, None, lists, slots, geometry, DENSE_BLOCK
    )
    return as_dense(values, batch, source.size)
