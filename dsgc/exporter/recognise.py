"""Recognising, for the exporter, what nodes of a lowered graph do."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsgc.exporter.errors import unsupported
from dsgc.ops.normalization import PackedBatchNorm
from dsgc.ops.spec import ACTS
from dsgc.passes.patterns import batch_norm, elementwise, module_of

__all__ = ["affine_of", "channel_padding", "is_fleeting", "pixel_steps"]


def is_fleeting(node: fx.Node) -> bool:
    """Whether all that is read of a node is read with one and the same activation applied."""
    if len(node.users) != 1:
        return False
    (reader,) = node.users
    if isinstance(module_of(reader), PackedBatchNorm):
        values = [n for n in reader.users if n.target is operator.getitem and n.args[1] == 0]
        named = [a for value in values for n in value.users for a in n.args if isinstance(a, str)]
        return len({name for name in named if name in ACTS}) == 1
    if batch_norm(reader) is not None:
        return len(reader.users) == 1
    return elementwise(reader) == "relu"


def affine_of(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a batch norm in eval mode."""
    if norm.running_mean is None or norm.running_var is None:
        raise unsupported("a batch norm has no running statistics", "train the model first")
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach()
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach()


def channel_padding(node: fx.Node) -> tuple[int, int] | None:
    """The channels that an F.pad adds before and after, if it adds nothing else, and zeros."""
    arguments: Mapping[str, Any] = {
        **dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)),
        **node.kwargs,
    }
    pad = tuple(arguments["pad"])
    plain = arguments.get("mode", "constant") == "constant" and not arguments.get("value")
    if plain and len(pad) == 6 and not any(pad[:4]) and min(pad) >= 0:
        return int(pad[4]), int(pad[5])
    return None


def pixel_steps(index: Any) -> tuple[int, int] | None:
    """Steps of ``x[:, :, ::a, ::b]``; None for any other index."""
    if not isinstance(index, tuple) or len(index) != 4:
        return None
    if not all(isinstance(part, slice) for part in index):
        return None
    if any(part.start or part.stop is not None for part in index):
        return None
    steps = [part.step or 1 for part in index]
    return (steps[2], steps[3]) if steps[:2] == [1, 1] and min(steps) > 0 else None
