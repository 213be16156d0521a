"""Recognising operations that change their first argument, by Python's names or by torch's."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx, nn

__all__ = ["AUGMENTED", "changes_its_input", "written_as"]

# `x += y` and what is computed by it. Tensors have no `@=`: Python makes `x = x @ y` of that.
AUGMENTED: dict[Any, Any] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
_PYTHONS_METHODS = {"__setitem__", *(f"__{target.__name__}__" for target in AUGMENTED)}
_SIGNS: dict[Any, str] = {
    "__setitem__": "] =",
    operator.iadd: "+=", operator.isub: "-=", operator.imul: "*=", operator.itruediv: "/=",
    operator.ifloordiv: "//=", operator.imod: "%=", operator.ipow: "**=", operator.iand: "&=",
    operator.ior: "|=", operator.ixor: "^=", operator.ilshift: "<<=", operator.irshift: ">>=",
}  # fmt: skip


def written_as(target: Any) -> str:
    """What stands in the code for a function or method that changes its input: `+=`, `relu_`."""
    named = target if isinstance(target, str) else getattr(target, "__name__", "")
    return _SIGNS.get(target, named)


def _named_in_place(node: fx.Node) -> bool:
    """Whether a function or method is called as those that change their input: `add_`, but neither
    `__add__` nor Python's `and_`; and Python's own methods, such as `__setitem__`.
    """
    if node.op == "call_method":
        name = str(node.target)
    elif node.op == "call_function" and getattr(node.target, "__module__", "") != "_operator":
        name = getattr(node.target, "__name__", "")
    else:
        return False
    if name in _PYTHONS_METHODS:
        return node.op == "call_method"
    return name.endswith("_") and not name.endswith("__") and not name.startswith("_")


def changes_its_input(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether `node`, which calls `module` if it calls one, changes its first argument in place."""
    if node.op == "call_module":
        return bool(getattr(module, "inplace", False))
    if node.target in AUGMENTED or node.target is operator.setitem:
        return True
    return _named_in_place(node) or bool(node.kwargs.get("inplace", False))
