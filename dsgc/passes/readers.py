"""Who reads a node: what lowering may leave to them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import fx, nn

from dsgc.ops.masked import masked_conv2d
from dsgc.passes.geometry import conv_padding
from dsgc.passes.patterns import (
    batch_norm,
    elementwise,
    extra_code,
    module_of,
    pool,
    shape_of,
)
from dsgc.select import Selector

__all__ = ["defers_norm", "is_clamped", "is_stem"]

_STEM_WINDOW = 64  # inputs of an output value, at most, that are worth computing twice


def is_stem(node: fx.Node) -> bool:
    """Whether `node` is a dense convolution that is cheap to make again and worth it.

    Its map must be larger than its input, and be read by a single BatchNorm that only sparse
    convolutions read.
    """
    conv = module_of(node)
    if type(conv) is not nn.Conv2d or conv.groups != 1 or conv.padding_mode != "zeros":
        return False
    if extra_code(conv):
        return False
    made, read = shape_of(node), shape_of(node.args[0])
    if "weight" not in conv._parameters or conv_padding(conv) is None or len(node.args) != 1:
        return False
    if made is None or read is None or len(read) != 4 or prod(made[1:]) < 4 * prod(read[1:]):
        return False
    if node.meta.get("dtype") not in (torch.float32, torch.float64):
        return False
    if conv.weight[0].numel() > _STEM_WINDOW or len(node.users) != 1:
        return False
    norm = next(iter(node.users))
    is_norm = isinstance(batch_norm(norm), nn.BatchNorm2d) and norm.args[0] is node
    return is_norm and _only_sparse_readers(norm, through_relu=True)


def is_clamped(node: fx.Node) -> bool:
    """Whether all that reads `node` is a ReLU right behind it."""
    return list(node.users) == [node.next] and elementwise(node.next) == "relu"


def defers_norm(node: fx.Node) -> bool:
    """Whether `node` is a dense BatchNorm that is read by a sparse convolution, after a ReLU and a
    max pooling or not.

    Then that one, or the pooling, applies it; other readers share one activated map.
    """
    return isinstance(batch_norm(node), nn.BatchNorm2d) and _any_sparse_reader(node)


def _any_sparse_reader(node: fx.Node, through: Sequence[str] = ("relu", "max")) -> bool:
    """Whether a sparse convolution reads `node`, or what a ReLU and a max pooling make of it.

    `through` is which of them may still come, each once and in either order.
    """
    for user in node.users:
        if user.target is masked_conv2d and user.args[0] is node:
            return True
        window = pool(user)
        kind = elementwise(user) if window is None else window.mode
        if kind in through and _any_sparse_reader(user, [one for one in through if one != kind]):
            return True
    return False


def _only_sparse_readers(node: fx.Node, through_relu: bool) -> bool:
    for user in node.users:
        if user.target is masked_conv2d and user.args[0] is node:
            continue
        if isinstance(module_of(user), Selector):
            continue
        if through_relu and elementwise(user) == "relu" and _only_sparse_readers(user, False):
            continue
        return False
    return bool(node.users)
