"""What sums, differences, products and quotients become."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dsgc.codegen import families
from dsgc.programs import dense_rules
from dsgc.programs.values import Rows
from dsgc.programs.writer import Writer

__all__ = ["arithmetic_rule"]

Rule = Callable[[], Rows]

_ADD: tuple[Any, ...] = (operator.add, operator.iadd, torch.add, "add", "add_")
_SUB: tuple[Any, ...] = (
    operator.sub, operator.isub, torch.sub, torch.subtract, "sub", "sub_", "subtract",
)  # fmt: skip
_MUL: tuple[Any, ...] = (
    operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply",
)  # fmt: skip
_DIV: tuple[Any, ...] = (
    operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, "div", "div_",
    "divide", "true_divide",
)  # fmt: skip
_NEG: tuple[Any, ...] = (operator.neg, torch.neg, "neg")
_SMALLEST, _LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def arithmetic_rule(writer: Writer, node: fx.Node, values: Sequence[Any]) -> Rule | None:
    """The rule for a function or method of one or two `values`, of which one is rows."""
    if node.target in _NEG and len(values) == 1 and isinstance(values[0], Rows):
        return _scaled(writer, values[0], -1.0, 0.0)
    alpha = node.kwargs.get("alpha", 1)
    if len(values) != 2 or set(node.kwargs) - {"alpha"} or not isinstance(alpha, (int, float)):
        return None
    left, right = values
    target: Any = node.target
    if target is torch.rsub:
        target, left, right = torch.sub, right, left
    if isinstance(left, Rows) and isinstance(right, Rows):
        return _of_two(writer, target, left, right, float(alpha))
    if isinstance(left, Rows):
        return _with_constant(writer, target, left, right, float(alpha))
    return _from_constant(writer, target, left, right, float(alpha))


def _of_two(writer: Writer, target: Any, left: Rows, right: Rows, alpha: float) -> Rule | None:
    """Of maps of one size, or of a map and a value for each of its channels."""
    same = (left.size, left.matrix) == (right.size, right.matrix)
    if not same and not (_is_gate(right, left) or _is_gate(left, right)):
        return None
    if target in _MUL:
        large, small = (left, right) if same or _is_gate(right, left) else (right, left)
        return lambda: _combined(writer, "product_rows", large, small)
    if target not in _ADD and target not in _SUB:
        return None
    factor = alpha if target in _ADD else -alpha
    if same or _is_gate(right, left):
        return lambda: _combined(writer, "sum_rows", left, right, factor)
    scaled = _scaled(writer, right, factor, 0.0)
    return lambda: _combined(writer, "sum_rows", right if factor == 1.0 else scaled(), left)


def _is_gate(small: Rows, large: Rows) -> bool:
    """Whether `small` is [N, C, 1, 1] for maps [N, C, H, W]."""
    return not small.matrix and not large.matrix and small.size == (large.size[0], 1, 1)


def _combined(writer: Writer, kernel: str, left: Rows, right: Rows, factor: float = 1.0) -> Rows:
    a, b = writer.alike(left, right)
    made = writer.rows(a.size, a.matrix, a.width)
    pixels = a.size[1] * a.size[2] // (b.size[1] * b.size[2])
    writer.program.call(families.rows(), kernel, a.view, b.view, made.view, pixels, factor)
    return made


def _with_constant(writer: Writer, target: Any, x: Rows, y: Any, alpha: float) -> Rule | None:
    """`x + alpha * y`, `x - alpha * y`, `x * y` and `x / y` for numbers or parameters `y`."""
    constant = _by_channel(y, x)
    if constant is None:
        return None
    if target in _ADD:
        return _scaled(writer, x, 1.0, alpha * constant)
    if target in _SUB:
        return _scaled(writer, x, 1.0, -alpha * constant)
    if target in _MUL:
        return _scaled(writer, x, constant, 0.0)
    if target not in _DIV or bool((constant.abs() < _SMALLEST).any()):
        return None
    return _scaled(writer, x, 1.0 / constant, 0.0)


def _from_constant(writer: Writer, target: Any, x: Any, y: Any, alpha: float) -> Rule | None:
    """`x + alpha * y`, `x - alpha * y` and `x * y` for numbers or parameters `x`."""
    constant = _by_channel(x, y) if isinstance(y, Rows) else None
    if constant is None:
        return None
    if target in _ADD:
        return _scaled(writer, y, alpha, constant)
    if target in _SUB:
        return _scaled(writer, y, -alpha, constant)
    return _scaled(writer, y, constant, 0.0) if target in _MUL else None


def _by_channel(value: Any, x: Rows) -> Tensor | None:
    """A number, or a parameter with a value a channel, as [C]; None for anything else."""
    channels = x.size[0]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.full((channels,), float(value)) if abs(value) <= _LARGEST else None
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return None
    shape = (1, channels) if x.matrix else (1, channels, 1, 1)
    try:
        return value.detach().expand(shape).reshape(channels).clone()
    except RuntimeError:
        return None


def _scaled(writer: Writer, x: Rows, scale: Tensor | float, shift: Tensor | float) -> Rule:
    size = (x.size[0],)
    both = [torch.as_tensor(one, dtype=torch.float32).expand(size) for one in (scale, shift)]
    return lambda: dense_rules.affine(writer, x, both[0], both[1])
