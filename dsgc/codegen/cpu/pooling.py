"""Generated kernels behind pool2d and its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.activation import apply, apply_backward
from dsgc.codegen.cpu.layout import (
    Geometry,
    Selection,
    check_float32,
    row_pointers,
    selection,
)
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.ops.layout import is_bitmask, pool_output_size
from dsgc.ops.spec import Activation

__all__ = ["pool2d", "pool2d_backward", "pool_weights", "pool_window"]


def _packed(libraries: Libraries, source: Activation) -> Selection:
    if source.index is None or source.rowptr is None:
        raise ValueError("pool2d takes a packed input; pool dense tensors with torch")
    check_float32(source.x)
    return selection(libraries, source.index, source.rowptr)


def pool_window(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> Geometry:
    target = pool_output_size(size, kernel, stride, padding, ceil_mode)
    return Geometry.forward(size[1:], target, kernel, stride, padding, (1, 1))


def pool_weights(window: Geometry, padding: Sequence[int], include_pad: bool) -> Tensor:
    """One over the number of positions that an average counts, for each output pixel."""
    counts = []
    for axis in (0, 1):
        start = torch.arange(window.target[axis]) * window.mul[axis] - padding[axis]
        reach = window.source[axis] + (padding[axis] if include_pad else 0)
        end = (start + window.kernel[axis]).clamp(max=reach)
        counts.append(end - (start if include_pad else start.clamp(min=0)))
    return 1.0 / torch.outer(*counts).view(-1).to(torch.float32)


def _flat(block: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Packed tensors as kernels take them: those of single neurons have no lanes."""
    return tuple(tensor.view(-1) for tensor in tensors) if block == 1 else tensors


def pool2d(
    libraries: Libraries,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``dsgc::pool2d``."""
    source = Activation(x, index, rowptr, scale, shift, act, size)
    chosen = _packed(libraries, source)
    block, (_, height, width) = x.shape[1], size
    values = apply(libraries, x.contiguous(), chosen.ids, source)
    window = pool_window(size, kernel, stride, padding, ceil_mode)
    where = window.table(), window.source_area
    batch = chosen.positions // (height * width)
    counts = torch.empty(batch * window.target_area, dtype=torch.int32)
    channels = (size[0],) if block == 1 else ()  # what kernels of single neurons need to know
    if block == 1:
        libraries(families.blocked(1), "count_neurons")(*chosen, counts, *channels, *where)
    else:
        libraries(families.lists(), "count_union")(*chosen, counts, *where)
    out_rowptr = row_pointers(counts)
    slots = int(out_rowptr[-1])
    out_index = torch.empty(slots, dtype=torch.int32)
    out = libraries.empty(slots, block)
    argmax = torch.empty((slots if mode == "max" else 0, block), dtype=torch.uint8)
    libraries(families.blocked(block), f"{mode}_pool_{block}")(
        *_flat(block, values),
        *chosen,
        out_index,
        out_rowptr,
        *_flat(block, out, argmax),
        pool_weights(window, padding, count_include_pad),
        *channels,
        *where,
    )
    if index is not None and is_bitmask(index):
        bits = torch.empty((counts.shape[0], index.shape[1]), dtype=torch.uint8)
        libraries(families.lists(), "set_bits")(out_index, out_rowptr, bits)
        out_index = bits
    return out, out_index, out_rowptr, argmax if mode == "max" else argmax.new_empty(0)


def pool2d_backward(
    libraries: Libraries,
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    y_index: Tensor,
    y_rowptr: Tensor,
    argmax: Tensor,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """``dsgc::pool2d_backward``."""
    source = Activation(x, index, rowptr, scale, shift, act, size)
    chosen = _packed(libraries, source)
    target = selection(libraries, y_index, y_rowptr)
    block = x.shape[1]
    window = pool_window(size, kernel, stride, padding, ceil_mode)
    dx = libraries.empty(chosen.ids.shape[0], block)
    libraries(families.blocked(block), f"{mode}_pool_backward_{block}")(
        *_flat(block, grad.contiguous()),
        *chosen,
        *target,
        *_flat(block, argmax.view(-1, block), dx),
        pool_weights(window, padding, count_include_pad),
        *((size[0],) if block == 1 else ()),
        window.transposed().table(),
    )
    return apply_backward(libraries, dx, x.contiguous(), chosen.ids, source, own=True)
