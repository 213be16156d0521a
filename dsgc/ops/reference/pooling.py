"""Reference kernels of pool2d."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.ops.layout import (
    ceil_div,
    expand_mask,
    gather_blocks,
    is_bitmask,
    mask_to_selection,
    pool_output_size,
    scatter_blocks,
    selection_to_mask,
)
from dsgc.ops.reference.activation import unpack, unpack_backward

__all__ = ["pool2d", "pool2d_backward"]

ZERO_TAP = 255
"""The argmax of an output that is the zero of an unselected position."""


def _check(index: Tensor | None, mode: str, kernel: Sequence[int]) -> None:
    if index is None:
        raise ValueError("pool2d takes packed input only")
    if mode not in ("max", "avg"):
        raise ValueError(f'mode must be "max" or "avg", not {mode!r}')
    if kernel[0] * kernel[1] >= ZERO_TAP:
        raise ValueError(f"a pooling window has at most {ZERO_TAP - 1} taps, not {list(kernel)}")


def _corner(extent: int, stride: int, padding: int, device: torch.device) -> Tensor:
    """Where each window begins along one axis, in input pixels."""
    return torch.arange(extent, device=device) * stride - padding


def pool2d(
    x: Tensor,
    index: Tensor,
    rowptr: Tensor,
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
    """(values, index, rowptr, argmax) of the pooled activation; a block is kept that any tap of its
    window has.

    argmax, uint8 [nnz, block], is the first tap r * S + s of the window that holds the maximum, or
    255 where that tap is an unselected position; it has no entries for averages.
    """
    _check(index, mode, kernel)
    channels, height, width = size
    block = x.shape[1]
    kernel, stride, padding = tuple(kernel), tuple(stride), tuple(padding)
    dense = unpack(x, index, rowptr, scale, shift, act, size)
    mask = selection_to_mask(index, rowptr, ceil_div(channels, block), height, width)
    kept = F.max_pool2d(mask.to(x.dtype), kernel, stride, padding, 1, ceil_mode) > 0
    y_index, y_rowptr = mask_to_selection(kept, is_bitmask(index))
    if mode == "avg":
        y = F.avg_pool2d(dense, kernel, stride, padding, ceil_mode, count_include_pad)
        return (
            gather_blocks(y, y_index, y_rowptr, block),
            y_index,
            y_rowptr,
            y_index.new_empty(0, dtype=torch.uint8),
        )
    y, best = F.max_pool2d(dense, kernel, stride, padding, 1, ceil_mode, return_indices=True)
    row = best // width - _corner(y.shape[2], stride[0], padding[0], x.device).view(-1, 1)
    column = best % width - _corner(y.shape[3], stride[1], padding[1], x.device)
    tap = row * kernel[1] + column
    wide = expand_mask(mask, block, channels).flatten(2)
    tap = tap.masked_fill(~wide.gather(2, best.flatten(2)).view_as(best), ZERO_TAP)
    argmax = gather_blocks(tap.to(torch.uint8), y_index, y_rowptr, block)
    return gather_blocks(y, y_index, y_rowptr, block), y_index, y_rowptr, argmax


def pool2d_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor,
    rowptr: Tensor,
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
    """(dx, dscale, dshift) from the gradient of pool2d's values."""
    _check(index, mode, kernel)
    channels, height, width = size
    out_size = pool_output_size(size, kernel, stride, padding, ceil_mode)
    if mode == "max":
        grad = grad.masked_fill(argmax == ZERO_TAP, 0)
    dy = scatter_blocks(grad, y_index, y_rowptr, (channels, *out_size))
    if mode == "avg":
        like = grad.new_zeros(dy.shape[0], channels, height, width)
        dense = torch.ops.aten.avg_pool2d_backward(
            dy, like, kernel, stride, padding, ceil_mode, count_include_pad, None
        )
        return unpack_backward(dense, x, index, rowptr, scale, shift, act, size)
    taps = argmax.masked_fill(argmax == ZERO_TAP, 0)
    tap = scatter_blocks(taps, y_index, y_rowptr, (channels, *out_size)).long()
    row = tap // kernel[1] + _corner(out_size[0], stride[0], padding[0], x.device).view(-1, 1)
    column = tap % kernel[1] + _corner(out_size[1], stride[1], padding[1], x.device)
    # Windows that kept nothing have a gradient of zero and no tap: their pixel is clamped into the
    # image.
    pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    flat = dy.new_zeros(dy.shape[0], channels, height * width)
    dense = flat.scatter_add(2, pixel.flatten(2), dy.flatten(2)).view(-1, channels, height, width)
    return unpack_backward(dense, x, index, rowptr, scale, shift, act, size)
