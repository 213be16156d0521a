"""Reference kernels of stem_conv2d."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.ops.layout import channels_last

__all__ = ["stem_conv2d", "stem_conv2d_backward"]


def stem_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """`F.conv2d`, channels last."""
    return channels_last(F.conv2d(channels_last(x), weight, bias, stride, padding, dilation))


def stem_conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """PyTorch's own gradients of x, weight and bias; empty where they are not asked for."""
    found = torch.ops.aten.convolution_backward(
        grad,
        channels_last(x),
        weight,
        [weight.shape[0]] if need_bias else None,
        stride,
        padding,
        dilation,
        False,
        (0, 0),
        1,
        (need_x, need_weight, need_bias),
    )
    dx, dweight, dbias = (x.new_empty(0) if value is None else value for value in found)
    dx = channels_last(dx) if need_x else dx
    # A gradient laid out as the weight is: the optimizer then reads both in the same order.
    return dx, _like(dweight, weight), dbias


def _like(value: Tensor, like: Tensor) -> Tensor:
    if value.shape != like.shape or value.stride() == like.stride():
        return value
    return torch.empty_like(like).copy_(value)
