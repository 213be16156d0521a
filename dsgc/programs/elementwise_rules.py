"""How functions of single values, softmax and concatenation become kernel calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from dsgc.codegen import families
from dsgc.passes.patterns import module_of
from dsgc.programs.values import Packed, Rows
from dsgc.programs.writer import Writer

__all__ = ["Applied", "apply", "apply_packed", "concatenation_rule", "function_of", "softmax"]


_INFINITY = float("inf")


class Applied(NamedTuple):
    """A function of single values: the kernel's name, and two parameters."""

    name: str
    a: float = 0.0
    b: float = 0.0


def _of_module(module: nn.Module) -> Applied | None:
    if isinstance(module, nn.ReLU6):
        return Applied("bounds", 0.0, 6.0)
    if isinstance(module, nn.Hardtanh):
        return Applied("bounds", float(module.min_val), float(module.max_val))
    if isinstance(module, nn.LeakyReLU):
        return Applied("leaky_relu", float(module.negative_slope))
    if isinstance(module, nn.ELU):
        return Applied("elu", float(module.alpha))
    if isinstance(module, nn.GELU):
        return _gelu(module.approximate)
    if isinstance(module, nn.Softplus):
        return _softplus(module.beta, module.threshold)
    return next((Applied(name) for kind, name in _PLAIN.items() if isinstance(module, kind)), None)


_PLAIN: Mapping[type[nn.Module], str] = {
    nn.Hardsigmoid: "hardsigmoid", nn.Hardswish: "hardswish", nn.Mish: "mish",
    nn.Sigmoid: "sigmoid", nn.SiLU: "silu", nn.Tanh: "tanh",
}  # fmt: skip


def _gelu(approximate: str = "none") -> Applied:
    return Applied("gelu" if approximate == "none" else "gelu_tanh")


def _softplus(beta: float = 1.0, threshold: float = 20.0) -> Applied | None:
    if not beta > 0.0:
        return None
    return Applied("softplus", float(beta), float(threshold))


def _clamped(min: Any = None, max: Any = None) -> Applied | None:
    low, high = -_INFINITY if min is None else min, _INFINITY if max is None else max
    if not all(isinstance(bound, (int, float)) for bound in (low, high)) or low > high:
        return None  # bounds that are tensors, or meet
    return Applied("bounds", float(low), float(high))


def _named(name: str) -> tuple[Callable[..., Applied], Sequence[str]]:
    return (lambda: Applied(name)), ()


# Functions with their parameters by name, in the order of their arguments.
_FUNCTIONS: Mapping[Any, tuple[Callable[..., Applied | None], Sequence[str]]] = {
    F.relu6: (lambda: Applied("bounds", 0.0, 6.0), ()),
    F.hardtanh: (
        lambda min_val=-1.0, max_val=1.0: _clamped(min_val, max_val), ("min_val", "max_val"),
    ),
    **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip"), (_clamped, ("min", "max"))),
    F.leaky_relu: (
        lambda negative_slope=0.01: Applied("leaky_relu", negative_slope), ("negative_slope",),
    ),
    F.elu: (lambda alpha=1.0: Applied("elu", alpha), ("alpha",)),
    F.gelu: (_gelu, ("approximate",)),
    F.softplus: (_softplus, ("beta", "threshold")),
    F.hardsigmoid: _named("hardsigmoid"),
    F.hardswish: _named("hardswish"),
    F.mish: _named("mish"),
    F.silu: _named("silu"),
    **{name: _named("tanh") for name in (F.tanh, torch.tanh, "tanh")},
    **{name: _named("sigmoid") for name in (F.sigmoid, torch.sigmoid, "sigmoid")},
}  # fmt: skip


def function_of(node: fx.Node) -> Applied | None:
    """The function of single values that a node applies, if there is a kernel for it."""
    module = module_of(node)
    if module is not None:
        return _of_module(module)
    if node.target not in _FUNCTIONS or len(node.all_input_nodes) != 1:
        return None
    make, names = _FUNCTIONS[node.target]
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    given.pop("inplace", None)
    known = set(given) <= set(names) and len(node.args) - 1 <= len(names)
    return make(**given) if known else None


def apply(writer: Writer, value: Rows, what: Applied) -> Rows:
    """A function of every value of a map or matrix."""
    x = writer.settle(value)
    made = writer.rows(x.size, x.matrix, x.width)
    _call(writer, x.view, made.view, x.positions, x.size[0], what)
    return made


def apply_packed(writer: Writer, value: Packed, what: Applied) -> Packed:
    """A function with f(0) = 0 of packed values."""
    slots, block = value.view.shape
    out = writer.program.buffer(slots, block)
    _call(writer, value.view, out, slots, value.block, what)
    return Packed(out, value.block)


def _call(writer: Writer, x: Any, y: Any, positions: Any, channels: int, what: Applied) -> None:
    writer.program.call(
        families.elementwise(),
        f"apply_{what.name}",
        *(x, y, positions, channels, float(what.a), float(what.b)),
    )


def softmax(writer: Writer, value: Rows) -> Rows:
    """Along the channels."""
    x = writer.settle(value)
    made = writer.rows(x.size, x.matrix, x.width)
    writer.program.call(
        families.elementwise(), "softmax", x.view, made.view, x.positions, x.size[0]
    )
    return made


def concatenation_rule(
    writer: Writer, values: Sequence[Any], dimension: object
) -> Callable[[], Rows] | None:
    """The rule for values side by side, if all are maps, or matrices, of one size, and the
    dimension is that of channels.
    """
    rows = [value for value in values if isinstance(value, Rows)]
    if len(rows) != len(values) or len({(x.size[1:], x.matrix) for x in rows}) != 1:
        return None
    if dimension not in ((1, -1) if rows[0].matrix else (1, -3)):
        return None
    return lambda: _concatenate(writer, rows)


def _concatenate(writer: Writer, values: Sequence[Rows]) -> Rows:
    """Maps or matrices of one size, their channels behind each other."""
    settled = [writer.settle(value) for value in values]
    first = settled[0]
    channels = sum(x.size[0] for x in settled)
    made = writer.rows((channels, first.size[1], first.size[2]), first.matrix)
    before = 0
    for i, x in enumerate(settled):
        if i == 0:
            # The first one also makes the zeros behind the last channel.
            pixels = torch.arange(first.size[1] * first.size[2], dtype=torch.int32)
            writer.take(x, made, pixels, x.size[0])
        else:
            writer.program.call(
                families.elementwise(), "join", x.view, made.view, x.size[0], before
            )
        before += x.size[0]
    return made
