"""Sizes that depend on the batch: numbers, names, or ``[operator, left, right]``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from dsgc_runtime.errors import DamagedArtifactError, shown

__all__ = ["LIMIT", "Size", "evaluate", "names_in", "parse"]

LIMIT = 1 << 46  # of any size: absurd numbers are refused before they are used
_DEPTH = 40
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "ceil": lambda a, b: -(-a // b),
}
Size = int | str | tuple[str, Any, Any]


def parse(given: object, names: Iterable[str], depth: int = 0) -> Size:
    """A size out of a manifest, in which only `names` may occur.

    Raises:
        DamagedArtifactError: it is anything else.
    """
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < LIMIT:
        return given
    if isinstance(given, str) and given in names:
        return given
    apart = isinstance(given, list) and len(given) == 3 and isinstance(given[0], str)
    if isinstance(given, list) and apart and given[0] in _OPERATORS and depth < _DEPTH:
        left, right = (parse(part, names, depth + 1) for part in given[1:])
        if given[0] != "ceil" or (isinstance(right, int) and right > 0):
            return (given[0], left, right)
    raise DamagedArtifactError(f"{shown(given)} is no size")


def evaluate(size: Size, known: Mapping[str, int]) -> int:
    """The number that a parsed size is.

    Raises:
        DamagedArtifactError: it is beyond `LIMIT`.
    """
    if isinstance(size, int):
        return size
    if isinstance(size, str):
        return known[size]
    found = _OPERATORS[size[0]](evaluate(size[1], known), evaluate(size[2], known))
    if found >= LIMIT:
        raise DamagedArtifactError(f"a size of {found} is beyond all bounds")
    return found


def names_in(size: Size) -> set[str]:
    """The names that a parsed size depends on."""
    if isinstance(size, str):
        return {size}
    return names_in(size[1]) | names_in(size[2]) if isinstance(size, tuple) else set()
