"""Which parameters share their channels: what has to be reordered together.

Every value of a graph has its channels in one *space*. A convolution or linear layer reads one
space and makes another; batch norm, activations, pooling and flattening keep it; a residual sum
makes two spaces one. A space that anything else reads is fixed: its order means something there.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsgc.passes.patterns import (
    batch_norm,
    elementwise,
    is_flatten,
    layer_module,
    module_of,
    pool,
    shape_of,
)
from dsgc.tracing.mode_dropout import ModeDropout

__all__ = ["Channels", "Member", "Space", "read_channels"]

_SUMS: set[Any] = {
    operator.add, operator.iadd, operator.sub, operator.mul, torch.add, torch.sub, torch.mul,
    "add", "add_", "sub", "mul",
}  # fmt: skip
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_ADAPTIVE = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_ADAPTIVE_FUNCTIONS: set[Any] = {F.adaptive_avg_pool2d, F.adaptive_max_pool2d}
_SAME: set[Any] = {"contiguous", "clone", "detach", "float"}
_MEANS: set[Any] = {torch.mean, "mean"}
_SHAPES: set[Any] = {getattr, "size", "dim", "numel"}
_CONV_FORWARD = nn.Conv2d._conv_forward


@dataclass(frozen=True)
class Member:
    """A dimension of a tensor that lies in a space: each channel `repeat` entries in a row."""

    tensor: Tensor
    dim: int
    repeat: int

    def ordered(self, tensor: Tensor, order: Tensor) -> Tensor:
        """A copy of the tensor, or of one of its shape, with its channels in another order."""
        shape = tensor.shape
        cut = tensor.detach().reshape(*shape[: self.dim], len(order), self.repeat, -1)
        return cut.index_select(self.dim, order.to(tensor.device)).reshape(shape)


@dataclass
class Space:
    """Channels that have one order.

    Attributes:
        size: how many channels.
        fixed: why they cannot be reordered; "" if they can.
        members: what lies in it, by identity of the tensor and dimension.
    """

    size: int
    fixed: str = ""
    members: dict[tuple[int, int], Member] = field(default_factory=dict)


@dataclass(frozen=True)
class _Value:
    """Where a value has its channels: dimension `axis`, each channel `repeat` entries in a row."""

    space: int
    axis: int
    repeat: int = 1


class Channels:
    """The spaces of a model, read graph by graph."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values: dict[fx.Node, _Value] = {}
        self._spaces: list[Space] = []
        self._merged: list[int] = []
        self._where: dict[tuple[int, int], int] = {}
        self._read: set[int] = set()

    def space_of(self, node: fx.Node) -> Space | None:
        """The space of a value's channels; None if the value is no tensor."""
        value = self.values.get(node)
        return None if value is None else self._spaces[self._root(value.space)]

    # Building

    def read(self, graph: fx.Graph) -> None:
        """Add a graph whose nodes know their shapes."""
        for node in graph.nodes:
            if node.op == "output":
                for source in node.all_input_nodes:
                    self._fix(source, "it reaches the output of the model, or of a part of it")
            elif shape_of(node) is None and node.target in _SHAPES:
                continue
            elif node.op == "get_attr":
                self._fixed_value(node, "it is used as a tensor of its own")
                self._read_tensor(node)
            elif node.op == "placeholder":
                self._fixed_value(node, "it is an input")
            elif not self._read_node(node):
                self._stop(node)

    def finish(self) -> None:
        """Fix what belongs to modules as well that no graph calls as a layer."""
        for path, module in self.model.named_modules():
            if id(module) in self._read:
                continue
            tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            for tensor in tensors:
                for dim in range(tensor.dim()):
                    at = self._where.get((id(tensor), dim))
                    if at is not None:
                        self._pin(at, f"{path or 'the model'} uses the same parameter")

    def _read_node(self, node: fx.Node) -> bool:
        """Note a node whose meaning for channels is known; False if it is not."""
        value = self.values.get(node.args[0]) if node.args else None  # type: ignore[arg-type]
        if value is None or shape_of(node) is None:
            return False
        if (layer := layer_module(node, (nn.Conv2d, nn.Linear))) is not None:
            return self._layer(node, layer, value)
        if (norm := batch_norm(node)) is not None:
            return value.axis == 1 and self._norm(node, norm, value)
        if node.target in _SUMS:
            return self._sum(node)
        if is_flatten(node):
            size = math.prod((shape_of(node.args[0]) or ())[2:])
            self.values[node] = _Value(value.space, 1, value.repeat * size)
            return value.axis == 1
        if self._keeps(node, value):
            self.values[node] = value
            return True
        return False

    def _keeps(self, node: fx.Node, value: _Value) -> bool:
        """Whether the channels of a node are those of what it reads, in the same dimension."""
        module = module_of(node)
        if elementwise(node) is not None or isinstance(module, (*_DROPOUTS, ModeDropout)):
            return True
        if node.target in _SAME and len(node.all_input_nodes) == 1:
            return True
        if value.axis != 1 or len(shape_of(node.args[0]) or ()) != 4:
            return False
        if pool(node) is not None or layer_module(node, _ADAPTIVE) is not None:
            return True
        return node.target in _ADAPTIVE_FUNCTIONS or _is_mean_of_maps(node)

    def _layer(self, node: fx.Node, layer: nn.Module, value: _Value) -> bool:
        weight = layer._parameters.get("weight")
        if weight is None:  # a parametrization computes it
            return False
        if isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not _CONV_FORWARD:
            return False
        axis = 1 if isinstance(layer, nn.Conv2d) else len(shape_of(node) or ()) - 1
        groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
        if value.axis != axis or (groups == 1 and weight.shape[1] != self._width(value)):
            return False
        if groups == 1:
            self._add(value.space, layer, weight, 1, value.repeat)
            made = self._new(weight.shape[0])
        elif groups == weight.shape[0] == self._width(value) and value.repeat == 1:
            made = value.space  # depthwise: every channel by itself
        else:
            return False
        self.values[node] = _Value(made, axis)
        self._add(made, layer, weight, 0, 1)
        bias = layer._parameters.get("bias")
        if bias is not None:
            self._add(made, layer, bias, 0, 1)
        return True

    def _norm(self, node: fx.Node, norm: nn.Module, value: _Value) -> bool:
        for name in ("weight", "bias", "running_mean", "running_var"):
            tensor = getattr(norm, name)
            if tensor is not None:
                self._add(value.space, norm, tensor, 0, value.repeat)
        self.values[node] = value
        return True

    def _sum(self, node: fx.Node) -> bool:
        sources = [one for one in node.all_input_nodes if one in self.values]
        if len(sources) != len(node.all_input_nodes) or node.kwargs:
            return False
        made = shape_of(node) or ()
        first, *others = (self.values[one] for one in sources)
        for one in sources:  # maps may be scaled by one number a channel: [N, C, 1, 1]
            shape = shape_of(one) or ()
            if len(shape) != len(made) or shape[first.axis] != made[first.axis]:
                return False
        if any((other.axis, other.repeat) != (first.axis, first.repeat) for other in others):
            return False
        for other in others:
            self._join(first.space, other.space)
        self.values[node] = first
        return True

    def _stop(self, node: fx.Node) -> None:
        """An operation that may look at the order of channels."""
        module = module_of(node)
        name = type(module).__name__ if module is not None else _called(node)
        for source in node.all_input_nodes:
            self._fix(source, f"{name} ({node.name}) may depend on the order of channels")
        self._fixed_value(node, f"it comes from {name} ({node.name})")

    # Spaces

    def _root(self, space: int) -> int:
        while self._merged[space] != space:
            space = self._merged[space]
        return space

    def _new(self, size: int, fixed: str = "") -> int:
        self._spaces.append(Space(size, fixed))
        self._merged.append(len(self._merged))
        return len(self._spaces) - 1

    def _width(self, value: _Value) -> int:
        return self._spaces[self._root(value.space)].size * value.repeat

    def _join(self, one: int, other: int) -> None:
        into, gone = self._root(one), self._root(other)
        if into == gone:
            return
        kept, lost = self._spaces[into], self._spaces[gone]
        self._merged[gone] = into
        kept.fixed = kept.fixed or lost.fixed
        kept.members |= lost.members
        if kept.size != lost.size:
            kept.fixed = kept.fixed or "channels of different numbers are added"

    def _add(self, space: int, owner: nn.Module, tensor: Tensor, dim: int, repeat: int) -> None:
        key = (id(tensor), dim)
        if key in self._where:  # a layer that is called twice, or a shared parameter
            self._join(self._where[key], space)
        self._where[key] = space
        self._read.add(id(owner))
        found = self._spaces[self._root(space)]
        if found.members.setdefault(key, Member(tensor, dim, repeat)).repeat != repeat:
            found.fixed = found.fixed or "a parameter is used in two ways"

    def _pin(self, space: int, reason: str) -> None:
        found = self._spaces[self._root(space)]
        found.fixed = found.fixed or reason

    def _fix(self, node: fx.Node, reason: str) -> None:
        if node in self.values:
            self._pin(self.values[node].space, reason)

    def _fixed_value(self, node: fx.Node, reason: str) -> None:
        shape = shape_of(node)
        if shape is not None:
            # Convolutions read dimension 1; what linear layers read of more dimensions is the last.
            axis = 1 if len(shape) in (2, 4) else len(shape) - 1
            size = shape[axis] if len(shape) > 1 else 1
            self.values[node] = _Value(self._new(size, reason), axis)

    def _read_tensor(self, node: fx.Node) -> None:
        tensor: Any = self.model
        for name in str(node.target).split("."):
            tensor = getattr(tensor, name, None)
        if not isinstance(tensor, Tensor):
            return
        for dim in range(tensor.dim()):
            space = self._where.setdefault((id(tensor), dim), self._new(tensor.shape[dim]))
            self._pin(space, f"{node.target} is used as a tensor of its own")


def read_channels(model: nn.Module, graphs: Iterable[fx.Graph]) -> Channels:
    """The spaces of all graphs of a model, whose nodes know their shapes."""
    channels = Channels(model)
    for graph in graphs:
        channels.read(graph)
    channels.finish()
    return channels


def _called(node: fx.Node) -> str:
    target: Any = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _is_mean_of_maps(node: fx.Node) -> bool:
    if node.target not in _MEANS or len(node.all_input_nodes) != 1:
        return False
    dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if not isinstance(dims, (tuple, list)):
        return False
    return sorted(int(dim) % 4 for dim in dims) == [2, 3]
