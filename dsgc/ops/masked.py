"""Masked layers on dense tensors: what the packed operators compute, said in plain PyTorch.

These are the nodes of the semantic graph. A mask is bool [N, blocks, H, W] over blocks of output
channels; entries outside it are zero and get no gradient.
"""

import torch.nn.functional as F
from torch import Tensor

from dsgc.ops.layout import expand_mask

__all__ = ["apply_mask", "masked_conv2d", "masked_linear"]

Pair = tuple[int, int]


def apply_mask(y: Tensor, mask: Tensor, block: int) -> Tensor:
    """y, [N, C, H, W] or [rows, C], with zeros where mask [N, blocks, H, W] is not set."""
    # A copy of its own keeps the strides of y, which masked_fill would not.
    return y.clone().masked_fill_(~expand_mask(mask, block, y.shape[1]).view(y.shape), 0)


def masked_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    block: int,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """conv2d of x [N, C, H, W] with weight [K, C, R, S], zero outside mask; groups are 1."""
    return apply_mask(F.conv2d(x, weight, bias, stride, padding, dilation), mask, block)


def masked_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, block: int
) -> Tensor:
    """linear of x [..., C], zero outside mask [rows, blocks, 1, 1], rows being all of x's."""
    y = F.linear(x, weight, bias)
    return apply_mask(y.reshape(-1, y.shape[-1]), mask, block).view(y.shape)
