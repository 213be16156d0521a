"""Reference kernels of pool2d and max_pool2d."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.ops.layout import (
    ceil_div,
    channels_last,
    expand_mask,
    gather_blocks,
    is_bitmask,
    mask_to_selection,
    pool_output_size,
    scatter_blocks,
    selection_to_mask,
)
from dsgc.ops.pooling import ZERO_TAP, check_dense_pooling, check_taps
from dsgc.ops.reference.activation import (
    activate,
    activate_backward,
    unpack,
    unpack_backward,
)

__all__ = ["max_pool2d", "max_pool2d_backward", "pool2d", "pool2d_backward"]


def _check(index: Tensor | None, mode: str, kernel: Sequence[int]) -> None:
    if index is None:
        raise ValueError("pool2d takes packed input only")
    if mode not in ("max", "avg"):
        raise ValueError(f'mode must be "max" or "avg", not {mode!r}')
    check_taps(kernel)


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
    tap = _taps(best, width, kernel, stride, padding)
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
    dense = _to_winners(dy, tap, size, kernel, stride, padding)
    return unpack_backward(dense, x, index, rowptr, scale, shift, act, size)


def _taps(
    best: Tensor, width: int, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """The tap r * S + s of every window that lies on the pixel `best` of the input."""
    row = best // width - _corner(best.shape[2], stride[0], padding[0], best.device).view(-1, 1)
    column = best % width - _corner(best.shape[3], stride[1], padding[1], best.device)
    return row * kernel[1] + column


def _to_winners(
    grad: Tensor,
    tap: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """The gradient [N, C, H', W'] of maxima, added to the pixels [N, C, H, W] at their taps."""
    channels, height, width = size
    row = tap // kernel[1] + _corner(tap.shape[2], stride[0], padding[0], tap.device).view(-1, 1)
    column = tap % kernel[1] + _corner(tap.shape[3], stride[1], padding[1], tap.device)
    # Windows that kept nothing have a gradient of zero and no tap: their pixel is clamped into the
    # image.
    pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    flat = grad.new_zeros(grad.shape[0], channels, height * width)
    added = flat.scatter_add(2, pixel.flatten(2), grad.flatten(2))
    return added.view(-1, channels, height, width)


def max_pool2d(
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
    """(y, argmax) of the activation of a dense x [N, C, H, W]: both [N, C, H', W'], channels last.

    argmax, uint8, is the first tap r * S + s of the window that holds the maximum.
    """
    check_dense_pooling(index, kernel)
    dense = activate(x, index, rowptr, scale, shift, act, size)
    kernel, stride, padding = tuple(kernel), tuple(stride), tuple(padding)
    y, best = F.max_pool2d(dense, kernel, stride, padding, 1, ceil_mode, return_indices=True)
    tap = _taps(best, size[2], kernel, stride, padding).to(torch.uint8)
    return channels_last(y), channels_last(tap)


def max_pool2d_backward(
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
    """(dx, dscale, dshift) from the gradient of max_pool2d's result."""
    check_dense_pooling(index, kernel)
    dense = _to_winners(grad, argmax.long(), size, kernel, stride, padding)
    return activate_backward(dense, x, index, rowptr, scale, shift, act, size)
