"""Numbers of an exported program that depend on the batch, as expressions that a runtime evaluates.

A size is a whole number, a name (``"batch"``, or a count that the program reads while it runs), or
a list ``[operator, left, right]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BATCH", "Size", "SizeLike", "as_size", "ceil_div", "evaluate", "product"]


@dataclass(frozen=True)
class Size:
    """An expression; build larger ones with ``+``, ``*`` and :func:`ceil_div`."""

    value: int | str | tuple[str, Size, Size]

    def __add__(self, other: SizeLike) -> Size:
        return _combine("+", self, other)

    def __mul__(self, other: SizeLike) -> Size:
        return _combine("*", self, other)

    __radd__ = __add__
    __rmul__ = __mul__

    def json(self) -> Any:
        """The form that the manifest holds."""
        if isinstance(self.value, tuple):
            operator, left, right = self.value
            return [operator, left.json(), right.json()]
        return self.value


SizeLike = int | Size
BATCH = Size("batch")


def as_size(value: SizeLike) -> Size:
    """A number as an expression."""
    return value if isinstance(value, Size) else Size(int(value))


def _combine(operator: str, left: SizeLike, right: SizeLike) -> Size:
    a, b = as_size(left), as_size(right)
    if isinstance(a.value, int) and isinstance(b.value, int):
        return Size(_apply(operator, a.value, b.value))
    for one, other in ((a, b), (b, a)):
        if (operator, other.value) in (("+", 0), ("*", 1)):
            return one
    if b.value == 1 and operator == "ceil":
        return a
    if operator == "*" and isinstance(a.value, tuple) and a.value[0] == "*":
        # (size * 3) * 2 is size * 6: equal sizes should look equal.
        inner = a.value[2]
        if isinstance(inner.value, int) and isinstance(b.value, int):
            return _combine("*", a.value[1], inner.value * b.value)
    return Size((operator, a, b))


def ceil_div(left: SizeLike, right: int) -> Size:
    """``left / right``, rounded up."""
    return _combine("ceil", left, right)


def product(shape: tuple[SizeLike, ...]) -> Size:
    """How many elements a tensor of ``shape`` has."""
    total = Size(1)
    for extent in shape:
        total = total * extent
    return total


def evaluate(size: SizeLike, known: Mapping[str, int]) -> int:
    """The number that ``size`` is for the names in ``known``."""
    value = as_size(size).value
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return known[value]
    operator, left, right = value
    return _apply(operator, evaluate(left, known), evaluate(right, known))


def _apply(operator: str, left: int, right: int) -> int:
    if operator == "+":
        return left + right
    return left * right if operator == "*" else -(-left // right)
