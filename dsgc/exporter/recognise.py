"""Recognising, for the exporter, what nodes of a lowered graph do."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsgc.exporter.errors import unsupported
from dsgc.ops.normalization import PackedBatchNorm, running_affine
from dsgc.ops.spec import ACTS
from dsgc.passes.patterns import batch_norm, elementwise, module_of, shape_of

__all__ = [
    "CONCATENATIONS",
    "affine_of",
    "channel_padding",
    "is_fleeting",
    "joined_along_channels",
    "pixel_steps",
    "softmax_dimension",
]

CONCATENATIONS: tuple[Any, ...] = (torch.cat, torch.concat, torch.concatenate)
_SOFTMAXES: tuple[Any, ...] = (F.softmax, torch.softmax, "softmax")


def softmax_dimension(node: fx.Node) -> int | None:
    """The dimension of a softmax; None for anything else."""
    module = module_of(node)
    if isinstance(module, nn.Softmax):
        return module.dim
    if module is not None or node.target not in _SOFTMAXES or node.kwargs.get("dtype") is not None:
        return None
    found = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return found if isinstance(found, int) and len(node.args) <= 2 else None


def joined_along_channels(node: fx.Node) -> list[fx.Node]:
    """What a concatenation joins, if along the channels; else nothing."""
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if not isinstance(parts, (list, tuple)) or not isinstance(dimension, int):
        return []
    nodes = [part for part in parts if isinstance(part, fx.Node)]
    shape = shape_of(nodes[0]) if nodes else None
    if shape is None or len(nodes) != len(parts) or dimension % len(shape) != 1:
        return []
    return nodes


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


def affine_of(norm: nn.modules.batchnorm._NormBase) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a batch norm in eval mode.

    Raises ExportError for one that takes statistics of its batch in eval mode too.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise unsupported("a batch norm has no running statistics", "train the model first")
    scale, shift = running_affine(norm)
    return scale.detach(), shift.detach()


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
