"""Recognising what a node does: activation functions, pooling, batch norm, flattening."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = [
    "HOOKS",
    "Pool",
    "addends",
    "batch_norm",
    "elementwise",
    "extra_code",
    "has_hooks",
    "has_own_methods",
    "is_flatten",
    "is_identity_pool",
    "layer_module",
    "module_of",
    "pool",
    "pooling",
    "remove_dead",
    "runs_code_of",
    "shape_of",
]

Pair = tuple[int, int]

_RELU = {F.relu, torch.relu, torch.relu_, "relu", "relu_"}
# f(0) = 0, one tensor argument, no state, no randomness.
_ZERO_PRESERVING: set[Any] = {
    F.celu, F.elu, F.gelu, F.hardshrink, F.hardswish, F.leaky_relu, F.mish, F.relu6, F.selu,
    F.silu, F.softshrink, F.softsign, F.tanh, F.tanhshrink, torch.abs, torch.celu, torch.selu,
    torch.tanh, "abs", "tanh", "tanh_",
}  # fmt: skip
_ZERO_PRESERVING_MODULES = (
    nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardswish, nn.LeakyReLU, nn.Mish, nn.ReLU6,
    nn.SELU, nn.SiLU, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink,
)  # fmt: skip
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def module_of(node: fx.Node) -> nn.Module | None:
    """The module that a `call_module` node calls."""
    if node.op != "call_module":
        return None
    return cast(fx.GraphModule, node.graph.owning_module).get_submodule(str(node.target))


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The dicts of a module in which hooks are registered."""


def has_hooks(module: nn.Module) -> bool:
    """Whether calling `module` runs more code than its forward."""
    return any(len(getattr(module, name, ())) for name in HOOKS)


def shape_of(node: object) -> tuple[int, ...] | None:
    """The shape found by propagate_shapes, None if `node` is no tensor."""
    return node.meta.get("shape") if isinstance(node, fx.Node) else None


_STEPS = ("forward", "_conv_forward")


def runs_code_of(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether what `module` does is what `kind` does: neither its class nor anybody afterwards has
    set other methods.
    """
    return not has_own_methods(module) and all(
        getattr(type(module), name, None) is getattr(kind, name, None) for name in _STEPS
    )


def has_own_methods(module: nn.Module) -> bool:
    """Whether somebody has set a method on `module` that says what it does."""
    return any(name in module.__dict__ for name in _STEPS)


def extra_code(layer: nn.Module) -> str:
    """What somebody has a convolution or linear layer do besides, or instead; "" for nothing."""
    if has_hooks(layer):
        return "it has hooks"
    kind = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
    return "" if runs_code_of(layer, kind) else "its code was replaced by another"


def layer_module(node: fx.Node, kinds: tuple[type[nn.Module], ...]) -> nn.Module | None:
    """The called module if it runs the unchanged forward of one of `kinds`, without hooks."""
    module = module_of(node)
    if module is None or has_hooks(module) or len(node.args) != 1 or node.kwargs:
        return None
    same = any(isinstance(module, kind) and runs_code_of(module, kind) for kind in kinds)
    return module if same and isinstance(node.args[0], fx.Node) else None


def elementwise(node: fx.Node) -> str | None:
    """ "relu", "zero" (any other function with f(0) = 0), "identity", or None."""
    module = module_of(node)
    if module is not None:
        if layer_module(node, (type(module),)) is None:
            return None
        if type(module) is nn.Identity:
            return "identity"
        if type(module) is nn.ReLU:
            return "relu"
        if type(module) is nn.Hardtanh:
            return "zero" if module.min_val <= 0 <= module.max_val else None
        return "zero" if type(module) in _ZERO_PRESERVING_MODULES else None
    if node.op not in ("call_function", "call_method") or len(node.all_input_nodes) != 1:
        return None
    if not node.args or node.args[0] is not node.all_input_nodes[0]:
        return None
    if node.target in _RELU:
        return "relu"
    return "zero" if node.target in _ZERO_PRESERVING else None


def batch_norm(node: fx.Node) -> nn.BatchNorm1d | nn.BatchNorm2d | None:
    """The BatchNorm that `node` calls on maps [N, C, H, W] or rows [N, C]."""
    module = layer_module(node, _BATCH_NORMS)
    if not isinstance(module, _BATCH_NORMS):
        return None
    shape = shape_of(node.args[0])
    rank = 4 if isinstance(module, nn.BatchNorm2d) else 2
    return module if shape is not None and len(shape) == rank else None


@dataclass(frozen=True)
class Pool:
    """Max or average pooling in its normal form."""

    mode: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool

    @property
    def area(self) -> int:
        """Positions in a window."""
        return math.prod(self.kernel)


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return (value, value)
    values = tuple(int(v) for v in value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


_MAX_NAMES: tuple[str, ...] = (
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "ceil_mode",
    "return_indices",
)
_AVG_NAMES: tuple[str, ...] = (
    "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override",
)  # fmt: skip
_POOL_FUNCTIONS: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.max_pool2d: ("max", _MAX_NAMES),
    torch.max_pool2d: ("max", _MAX_NAMES),
    F.avg_pool2d: ("avg", _AVG_NAMES),
}
_MOST_PACKED = 254  # positions of a window that packed pooling can tell apart


def pool(node: fx.Node) -> Pool | None:
    """The pooling that `node` does on maps, if it is one that a packed value can go through."""
    found = pooling(node, {})
    return None if found is None or found.area > _MOST_PACKED else found


def pooling(node: fx.Node, known: Mapping[fx.Node, Any]) -> Pool | None:
    """The pooling that `node` does on maps, whose sizes may be among the `known` values."""
    shape = shape_of(node.args[0]) if node.args else None
    if shape is None or len(shape) != 4:
        return None
    module = layer_module(node, (nn.MaxPool2d, nn.AvgPool2d))
    if module is not None:
        mode, names = (
            ("max", _MAX_NAMES) if isinstance(module, nn.MaxPool2d) else ("avg", _AVG_NAMES)
        )
        values = {name: getattr(module, name, None) for name in names}
    elif node.op == "call_function" and node.target in _POOL_FUNCTIONS:
        mode, names = _POOL_FUNCTIONS[node.target]
        first, *others = node.args
        read = [one for one in node.all_input_nodes if one is not first]
        if any(one not in known for one in read) or len(others) > len(names):
            return None
        named = {**dict(zip(names, others, strict=False)), **node.kwargs}
        values = fx.map_arg(named, lambda one: known[one])
    else:
        return None
    if values.get("return_indices") or values.get("divisor_override") is not None:
        return None
    stride = values.get("stride")
    if _pair(values.get("dilation") or 1) != (1, 1):
        return None
    kernel = _pair(values["kernel_size"])
    return Pool(
        mode,
        kernel,
        kernel if stride is None or (not isinstance(stride, int) and not stride) else _pair(stride),
        _pair(values.get("padding") or 0),
        bool(values.get("ceil_mode") or False),
        bool(values.get("count_include_pad", True)),
    )


def is_identity_pool(node: fx.Node) -> bool:
    """Whether an adaptive pooling leaves maps of this size as they are."""
    module = layer_module(node, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))
    functions = (nn.functional.adaptive_avg_pool2d,)
    if module is None and node.target not in functions:
        return False
    if getattr(module, "return_indices", False):
        return False
    return shape_of(node) == shape_of(node.args[0]) and shape_of(node) is not None


_ADDITIONS: set[Any] = {operator.add, torch.add, "add"}


def addends(node: fx.Node) -> list[fx.Node]:
    """The two maps [N, C, H, W] of one shape that `node` adds; none for any other node."""
    if node.op == "call_module" or node.target not in _ADDITIONS:
        return []
    if len(node.args) != 2 or node.kwargs:
        return []
    found = [read for read in node.args if isinstance(read, fx.Node)]
    shapes = {shape_of(read) for read in (*found, node)}
    shape = shape_of(node)
    return found if len(found) == 2 and len(shapes) == 1 and shape and len(shape) == 4 else []


_FLATTENS: set[Any] = {torch.flatten, torch.reshape, "flatten", "reshape", "view"}


def is_flatten(node: fx.Node) -> bool:
    """Whether `node` makes rows [N, C*H*W] of maps [N, C, H, W], judged by its shapes."""
    module = layer_module(node, (nn.Flatten,))
    if module is None and (node.op == "call_module" or node.target not in _FLATTENS):
        return False
    source = shape_of(node.args[0]) if node.args else None
    made = shape_of(node)
    if source is None or made is None or len(source) != 4 or len(made) != 2:
        return False
    return made[0] == source[0] and made[1] == math.prod(source[1:])


_PURE_FUNCTIONS: set[Callable[..., Any]] = {
    getattr, operator.getitem, operator.mul, operator.add, operator.sub, operator.floordiv,
}  # fmt: skip
_PURE_METHODS = {"size", "dim", "view", "reshape", "flatten", "numel"}


def remove_dead(gm: fx.GraphModule) -> None:
    """Erase unread nodes that only look at shapes or at values: modules keep their effects."""
    for node in reversed(list(gm.graph.nodes)):
        pure = (
            node.op == "get_attr"
            or (node.op == "call_method" and node.target in _PURE_METHODS)
            or (node.op == "call_function" and node.target in _PURE_FUNCTIONS)
            or is_flatten(node)
        )
        if pure and not node.users:
            gm.graph.erase_node(node)


def signature_arguments(function: Callable[..., Any], node: fx.Node) -> dict[str, Any]:
    """The arguments of a call by name, defaults included."""
    bound = inspect.signature(function).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)
