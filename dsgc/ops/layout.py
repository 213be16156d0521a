"""How a packed activation is laid out, and the index arithmetic every operator shares.

A *position* is one output pixel of one sample, in the order (n, h, w); a *block* is a run of
neighbouring channels selected together. A selection is a pair of tensors `(index, rowptr)` in one
of two forms:

- list: `index` int32 `[nnz]`, block ids ascending inside a position; `rowptr` int32 `[P + 1]`;
- bitmask (blocks of one channel only): `index` uint8 `[P, ceil(blocks / 8)]`, where bit `j` of byte
  `i` is block
  `8 * i + j`; `rowptr` int32 `[P + 1]` as above.

The selected blocks' numbers are `values` `[nnz, block]`. Lanes beyond the last channel (the tail)
are always zero.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "block_of",
    "ceil_div",
    "channels_last",
    "conv_output_size",
    "expand_index",
    "expand_mask",
    "gather_blocks",
    "in_order_of",
    "is_bitmask",
    "mask_to_selection",
    "pool_output_size",
    "position_ids",
    "scatter_blocks",
    "selection_to_mask",
]


def ceil_div(a: int, b: int) -> int:
    """The smallest whole number not below `a / b`."""
    return -(-a // b)


def conv_output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a convolution's output; `size` is (H, W) or (C, H, W).

    Raises ValueError where the kernel does not fit into the padded input.
    """
    out = [
        (extent + 2 * pad - dil * (taps - 1) - 1) // step + 1
        for extent, taps, step, pad, dil in zip(
            size[-2:], kernel, stride, padding, dilation, strict=True
        )
    ]
    if min(out) < 1:
        raise ValueError(
            f"a kernel of {list(kernel)} with dilation {list(dilation)} does not fit "
            f"into an input of {list(size[-2:])} padded by {list(padding)}"
        )
    return out[0], out[1]


def pool_output_size(
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> tuple[int, int]:
    """Height and width of a pooling's output by PyTorch's rule; `size` is (H, W) or (C, H, W).

    With `ceil_mode` the last window may reach over the edge, but must start inside the input or its
    left padding. Raises ValueError where the window does not fit or the padding exceeds half the
    window.
    """
    out = []
    for extent, taps, step, pad in zip(size[-2:], kernel, stride, padding, strict=True):
        if 2 * pad > taps:
            raise ValueError(f"padding {list(padding)} exceeds half of the window {list(kernel)}")
        reach = extent + 2 * pad - taps
        count = (ceil_div(reach, step) if ceil_mode else reach // step) + 1
        if ceil_mode and (count - 1) * step >= extent + pad:
            count -= 1
        if count < 1:
            raise ValueError(f"a window of {list(kernel)} does not fit into {list(size[-2:])}")
        out.append(count)
    return out[0], out[1]


def is_bitmask(index: Tensor) -> bool:
    """Whether a selection's `index` is a bitmask (uint8) rather than a list (int32)."""
    if index.dtype == torch.uint8:
        return True
    if index.dtype != torch.int32:
        raise ValueError(f"a selection's index must be int32 or uint8, not {index.dtype}")
    return False


def position_ids(rowptr: Tensor) -> Tensor:
    """The position of every selected block: int64 [nnz]."""
    positions = torch.arange(rowptr.shape[0] - 1, device=rowptr.device)
    return positions.repeat_interleave(rowptr.diff().long())


def _bits_to_flags(index: Tensor) -> Tensor:
    shifts = torch.arange(8, dtype=torch.uint8, device=index.device)
    return ((index.unsqueeze(-1) >> shifts) & 1).bool().flatten(1)


def expand_index(index: Tensor, rowptr: Tensor) -> Tensor:
    """The block id of every selected block: int32 [nnz], from either form of a selection."""
    if not is_bitmask(index):
        return index
    return _bits_to_flags(index).nonzero()[:, 1].to(torch.int32)


def selection_to_mask(
    index: Tensor, rowptr: Tensor, blocks: int, height: int, width: int
) -> Tensor:
    """A selection as bool [N, blocks, height, width]."""
    positions = rowptr.shape[0] - 1
    flags = torch.zeros(positions, blocks, dtype=torch.bool, device=index.device)
    flags[position_ids(rowptr), expand_index(index, rowptr).long()] = True
    return flags.view(positions // (height * width), height, width, blocks).permute(0, 3, 1, 2)


def mask_to_selection(mask: Tensor, bits: bool) -> tuple[Tensor, Tensor]:
    """bool [N, blocks, H, W] as a selection (index, rowptr): a bitmask if `bits`, else a list."""
    batch, blocks, height, width = mask.shape
    flags = mask.permute(0, 2, 3, 1).reshape(batch * height * width, blocks)
    rowptr = F.pad(flags.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    if not bits:
        return flags.nonzero()[:, 1].to(torch.int32), rowptr
    count = ceil_div(blocks, 8)
    padded = F.pad(flags.to(torch.uint8), (0, 8 * count - blocks)).view(-1, count, 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded << shifts).sum(-1).to(torch.uint8), rowptr


def expand_mask(mask: Tensor, block: int, channels: int) -> Tensor:
    """A mask over blocks [N, blocks, H, W] as one over channels [N, channels, H, W]."""
    return mask.repeat_interleave(block, 1)[:, :channels]


def channels_last(x: Tensor) -> Tensor:
    """A fresh copy of x [N, C, H, W] in `torch.channels_last` strides, also where extents are 1."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    return out.copy_(x)


def in_order_of(x: Tensor, *deciding: Tensor) -> Tensor:
    """x as it is if one of `deciding`, maps or weights [.., C, H, W], is channels-last; else
    contiguous.
    """
    return x if any(map(_is_channels_last, deciding)) else x.contiguous()


def _is_channels_last(x: Tensor) -> bool:
    """By its strides, which also tell it of extents of 1 where they can, as dense layers do."""
    _, channels, height, width = x.shape
    same = x.stride()[1:] == (1, width * channels, channels)
    return same and (channels > 1 or height * width > 1)


def gather_blocks(x: Tensor, index: Tensor, rowptr: Tensor, block: int) -> Tensor:
    """The selected blocks of a dense x [N, C, H, W]: values [nnz, block], tail lanes zero."""
    batch, channels, height, width = x.shape
    blocks = ceil_div(channels, block)
    rows = x.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    rows = F.pad(rows, (0, blocks * block - channels)).view(-1, blocks, block)
    return rows[position_ids(rowptr), expand_index(index, rowptr).long()]


def scatter_blocks(values: Tensor, index: Tensor, rowptr: Tensor, size: Sequence[int]) -> Tensor:
    """Packed values [nnz, block] as a dense [N, C, H, W], zero where unselected, channels last."""
    channels, height, width = size
    block = values.shape[1]
    positions = rowptr.shape[0] - 1
    rows = values.new_zeros(positions, ceil_div(channels, block), block)
    rows[position_ids(rowptr), expand_index(index, rowptr).long()] = values
    dense = rows.flatten(1)[:, :channels]
    dense = dense.view(positions // (height * width), height, width, channels)
    return channels_last(dense.permute(0, 3, 1, 2))


def block_of(channels: int, blocks: int) -> int:
    """The block, a power of two, by which `channels` make `blocks` blocks.

    There is at most one unless all channels are one block. Raises ValueError if there is none.
    """
    block = 1
    while ceil_div(channels, block) > blocks:
        block *= 2
    if ceil_div(channels, block) != blocks:
        raise ValueError(f"no power of two divides {channels} channels into {blocks} blocks")
    return block
