"""Nodes that share memory, and what is written through one and read through another."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from dsgc.passes.patterns import changes_its_input

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

_NO_TENSORS = frozenset(
    ("device", "dtype", "is_cuda", "is_leaf", "itemsize", "layout", "names", "ndim",
     "requires_grad", "shape")
)  # fmt: skip
_FRESH = frozenset(
    ("empty", "empty_like", "full", "full_like", "new_empty", "new_full", "new_ones", "new_zeros",
     "ones", "ones_like", "zeros", "zeros_like")
)  # fmt: skip


def writes_state(node: fx.Node) -> bool:
    """Whether `node` changes a parameter or buffer, or a view of one."""
    written: Any = node.kwargs.get("out")
    if changes_its_input(node, None, _IN_PLACE):
        written = node.args[0] if node.args else node.kwargs.get("input")
    while isinstance(written, fx.Node):
        if written.op == "get_attr":
            return True
        written = written.args[0] if _keeps_memory(written) and written.args else None
    return False


def _keeps_memory(node: fx.Node) -> bool:
    if node.target is getattr and node.args[1] in _NO_TENSORS:
        return False
    return name_of(node) in _VIEWS or changes_its_input(node, None, _IN_PLACE)


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
    nodes: list[fx.Node] = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    base: dict[fx.Node, fx.Node] = {}
    views: dict[fx.Node, list[fx.Node]] = {}
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
    called = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    return bool(node.args) and changes_its_input(node, called, _IN_PLACE)
