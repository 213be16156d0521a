"""Reference kernels of activate, pack, unpack and their backward formulas."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.ops.layout import (
    ceil_div,
    channels_last,
    expand_index,
    gather_blocks,
    scatter_blocks,
)
from dsgc.ops.spec import Activation, check_activation

__all__ = [
    "activate",
    "activate_backward",
    "block_ids",
    "pack",
    "per_channel",
    "per_entry",
    "unpack",
    "unpack_backward",
]


def block_ids(index: Tensor | None, rowptr: Tensor | None) -> Tensor | None:
    """The block of every row of packed values, int64 [nnz]; None for a dense input."""
    if index is None or rowptr is None:
        return None
    return expand_index(index, rowptr).long()


def per_entry(vector: Tensor, ids: Tensor | None, block: int) -> Tensor:
    """A vector over channels [C], shaped to be combined with a dense input or with packed values.

    Tail lanes get zero, so that `values * scale + shift` keeps them zero.
    """
    if ids is None:
        return vector.view(1, -1, 1, 1)
    channels = vector.shape[0]
    blocks = ceil_div(channels, block)
    return F.pad(vector, (0, blocks * block - channels)).view(blocks, block)[ids]


def per_channel(x: Tensor, ids: Tensor | None, channels: int) -> Tensor:
    """The sum of each channel's entries, [C], of a dense input or of packed values."""
    if ids is None:
        return x.sum((0, 2, 3))
    block = x.shape[1]
    sums = x.new_zeros(ceil_div(channels, block), block).index_add(0, ids, x)
    return sums.flatten()[:channels].contiguous()


def activate(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
) -> Tensor:
    """The numbers a deferred activation stands for, stored as x is."""
    check_activation(Activation(x, index, rowptr, scale, shift, act, size))
    out = x.relu() if act in ("relu", "relu_affine") else x
    if scale is not None and shift is not None:
        ids = block_ids(index, rowptr)
        out = out * per_entry(scale, ids, x.shape[1]) + per_entry(shift, ids, x.shape[1])
    if act == "affine_relu":
        out = out.relu()
    return _stored(out, index)


def _stored(x: Tensor, index: Tensor | None) -> Tensor:
    """A fresh copy of a result in the strides that all results have."""
    return channels_last(x) if index is None else x.clone(memory_format=torch.contiguous_format)


def activate_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dscale, dshift) from the gradient of `activate`'s result."""
    check_activation(Activation(x, index, rowptr, scale, shift, act, size))
    if scale is None or shift is None:
        dx = grad.masked_fill(x <= 0, 0) if act == "relu" else grad
        return _stored(dx, index), x.new_empty(0), x.new_empty(0)
    ids = block_ids(index, rowptr)
    wide = per_entry(scale, ids, x.shape[1])
    if act == "affine_relu":
        grad = grad.masked_fill(x * wide + per_entry(shift, ids, x.shape[1]) <= 0, 0)
    inner = x.relu() if act == "relu_affine" else x
    dx = grad * wide
    if act == "relu_affine":
        dx = dx.masked_fill(x <= 0, 0)
    dscale, dshift = per_channel(grad * inner, ids, size[0]), per_channel(grad, ids, size[0])
    return _stored(dx, index), dscale, dshift


def pack(x: Tensor, index: Tensor, rowptr: Tensor, block: int) -> Tensor:
    """The selected blocks of a dense x [N, C, H, W]: values [nnz, block]."""
    return gather_blocks(x, index, rowptr, block)


def unpack(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
) -> Tensor:
    """The dense [N, C, H, W] of a deferred activation: zero, not act(0), where unselected."""
    x = activate(x, index, rowptr, scale, shift, act, size)
    if index is None or rowptr is None:
        return x
    return scatter_blocks(x, index, rowptr, size)


def unpack_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dscale, dshift) from the gradient of `unpack`'s result."""
    if index is not None and rowptr is not None:
        grad = gather_blocks(grad, index, rowptr, x.shape[1])
    return activate_backward(grad, x, index, rowptr, scale, shift, act, size)
