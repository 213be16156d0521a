"""Nodes that share memory, and what is written through one and read through another."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from dsgc.passes.patterns import named_in_place

__all__ = ["hidden_write", "name_of", "writes_state"]

_VIEWS = frozenset(
    ("T", "chunk", "contiguous", "data", "detach", "diagonal", "expand", "expand_as", "flatten",
     "getattr", "getitem", "mT", "movedim", "narrow", "permute", "reshape", "select", "split",
     "squeeze", "swapaxes", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as")
)  # fmt: skip
_IN_PLACE = frozenset(
    (operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv,
     operator.imod, operator.ipow, operator.iand, operator.ior, operator.ixor, operator.setitem)
)  # fmt: skip

_FRESH = frozenset(
    ("empty", "empty_like", "full", "full_like", "new_empty", "new_full", "new_ones", "new_zeros",
     "ones", "ones_like", "zeros", "zeros_like")
)  # fmt: skip


def writes_state(node: fx.Node) -> bool:
    """Whether `node` changes a parameter or buffer, or a view of one."""
    written: Any = node.kwargs.get("out")
    if _in_place(node):
        written = node.args[0] if node.args else node.kwargs.get("input")
    while isinstance(written, fx.Node):
        if written.op == "get_attr":
            return True
        written = written.args[0] if _keeps_memory(written) and written.args else None
    return False


def _keeps_memory(node: fx.Node) -> bool:
    if node.target is getattr and node.args[1] not in _VIEWS:
        return False  # a size, or a type
    return name_of(node) in _VIEWS or _in_place(node)


def _in_place(node: fx.Node) -> bool:
    inplace = node.kwargs.get("inplace") is True
    return named_in_place(node) or node.target in _IN_PLACE or inplace


def name_of(node: fx.Node) -> str:
    """What the function or method is called that `node` calls; nothing for others."""
    if node.op not in ("call_function", "call_method"):
        return ""
    target: Any = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def hidden_write(graph: fx.Graph, model: nn.Module) -> fx.Node | None:
    """The first operation that changes a tensor which another view of the same memory is read for
    afterwards: a graph, whose values may be copies or packed, would not show the change there.

    Tensors that were made to be filled are left out, since they stay as they are. Modules that the
    graph calls are those of `model`.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    base: dict[fx.Node, fx.Node] = {}
    views: dict[fx.Node, list[fx.Node]] = {}
    nodes: list[fx.Node] = list(graph.nodes)
    for node in nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        writes = _writes(node, model)
        shared = source is not None and (writes or _keeps_memory(node))
        base[node] = base[source] if source is not None and shared else node
        others = views.setdefault(base[node], [])
        if source is not None and writes and name_of(base[node]) not in _FRESH:
            # What was changed in place before is this very value by another name.
            same = set(_one_value(source, model))
            for other in others:
                late = (order[user] > order[node] for user in other.users)
                if other not in same and any(late):
                    return node
        others.append(node)
    return None


def _one_value(node: fx.Node, model: nn.Module) -> Iterator[fx.Node]:
    """`node`, and what it was before it was changed in place."""
    yield node
    while _writes(node, model) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        yield node


def _writes(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    return _in_place(node) and bool(node.args)
