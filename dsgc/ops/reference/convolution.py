"""Reference kernels of conv2d: unpack, convolve, pack."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.ops.layout import conv_output_size, gather_blocks, scatter_blocks
from dsgc.ops.reference.activation import unpack, unpack_backward

__all__ = ["conv2d", "conv2d_backward"]


def conv2d(
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
    """The selected blocks of a convolution's output, values [nnz, block]; weight [K, C, R, S]."""
    dense = unpack(x, index, rowptr, scale, shift, act, size)
    y = F.conv2d(dense, weight, bias, stride, padding, dilation)
    return gather_blocks(y, y_index, y_rowptr, block)


def conv2d_backward(
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
    """(dx, dscale, dshift, dweight, dbias); what is not needed has no entries."""
    filters, _, *kernel = weight.shape
    out_size = conv_output_size(size, kernel, stride, padding, dilation)
    dense = unpack(x, index, rowptr, scale, shift, act, size)
    dy = scatter_blocks(grad, y_index, y_rowptr, (filters, *out_size))
    dx, dweight, dbias = torch.ops.aten.convolution_backward(
        dy, dense, weight, [filters], stride, padding, dilation, False, [0, 0], 1,
        [need_x, need_weight, need_bias],
    )  # fmt: skip
    inputs = (x.new_empty(0), x.new_empty(0), x.new_empty(0))
    if need_x:
        inputs = unpack_backward(dx, x, index, rowptr, scale, shift, act, size)
    dweight = weight.new_empty(weight.shape).copy_(dweight) if need_weight else weight.new_empty(0)
    return *inputs, dweight, dbias if need_bias else weight.new_empty(0)
