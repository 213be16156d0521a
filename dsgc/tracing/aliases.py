"""Nodes that share memory, and what is written through one and read through another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dsgc.passes.in_place import AUGMENTED, changes_its_input
from dsgc.tracing.kinds import may_be_number, name_of

__all__ = ["HiddenWrite", "hidden_write", "writes_state"]

_VIEWS = frozenset(
    ("T", "chunk", "contiguous", "data", "detach", "diagonal", "expand", "expand_as", "flatten",
     "getattr", "getitem", "mT", "movedim", "narrow", "permute", "reshape", "select", "split",
     "ravel", "reshape_as", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "unfold",
     "broadcast_to", "hsplit", "moveaxis", "vsplit", "dropout", "alpha_dropout",
     "transpose", "unbind", "unflatten", "unsqueeze", "view", "view_as")
)  # fmt: skip
_NO_TENSORS = frozenset(
    ("device", "dtype", "is_cuda", "is_leaf", "itemsize", "layout", "names", "ndim",
     "requires_grad", "shape")
)  # fmt: skip
_FRESH = frozenset(
    ("empty", "empty_like", "full", "full_like", "new_empty", "new_full", "new_ones", "new_zeros",
     "ones", "ones_like", "zeros", "zeros_like")
)  # fmt: skip
_SAME_MEMORY = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


def writes_state(node: fx.Node) -> bool:
    """Whether `node` changes a parameter or buffer, or a view of one."""
    written: Any = node.kwargs.get("out")
    if changes_its_input(node, None):
        written = node.args[0] if node.args else node.kwargs.get("input")
    while isinstance(written, fx.Node):
        if written.op == "get_attr":
            return True
        written = written.args[0] if _keeps_memory(written) and written.args else None
    return False


def _keeps_memory(node: fx.Node) -> bool:
    if node.target is getattr and node.args[1] in _NO_TENSORS:
        return False
    return name_of(node) in _VIEWS or changes_its_input(node, None)


@dataclass(frozen=True)
class HiddenWrite:
    """An operation whose change of a tensor a graph would not show; `changed` says of which."""

    node: fx.Node
    changed: str
    of_argument: bool = False


def hidden_write(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> HiddenWrite | None:
    """The first operation whose change of a tensor a graph would not show.

    A graph's values may be copies, or packed. So whoever else has the memory that is written would
    not see it: another view that is read afterwards, or the caller, if it is an argument's.
    Tensors that were made to be filled are left out, since they stay as they are. `modules` are
    those that the graph calls.
    """
    nodes: list[fx.Node] = list(graph.nodes)
    order = {node: i for i, node in enumerate(nodes)}
    base: dict[fx.Node, fx.Node] = {}
    views: dict[fx.Node, list[fx.Node]] = {}
    for node in nodes:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        writes = _writes(node, modules)
        shared = source is not None and (writes or _hands_on(node, modules))
        base[node] = base[source] if source is not None and shared else node
        others = views.setdefault(base[node], [])
        if source is not None and writes and name_of(base[node]) not in _FRESH:
            if base[node].op == "placeholder":
                return HiddenWrite(node, "an argument, which its caller sees", of_argument=True)
            # What was changed in place before is this very value by another name.
            same = set(_one_value(source, modules))
            read = [other for other in others if any(order[u] > order[node] for u in other.users)]
            if any(other not in same for other in read):
                return HiddenWrite(node, "a tensor of which another view is read afterwards")
            if read and node.target in AUGMENTED and may_be_number(source, modules):
                return HiddenWrite(node, "a value that is read afterwards and may be no tensor")
        others.append(node)
    return None


def _one_value(node: fx.Node, modules: Mapping[str, nn.Module]) -> Iterator[fx.Node]:
    """`node`, and what it was before it was changed in place."""
    yield node
    while _writes(node, modules) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
        yield node


def _writes(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    called = modules[str(node.target)] if node.op == "call_module" else None
    return bool(node.args) and changes_its_input(node, called)


def _hands_on(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether the result of `node` is, or may be, its first argument or a view of it."""
    if node.op == "call_module":
        return isinstance(modules[str(node.target)], _SAME_MEMORY)
    return _keeps_memory(node)
