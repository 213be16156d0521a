"""Give every value one node: what an in-place operation changed is read from the operation."""

from __future__ import annotations

import operator

import torch
from torch import fx

from dsgc.passes.context import Context
from dsgc.passes.patterns import changes_its_input, elementwise, module_of

__all__ = ["functionalize"]

_IN_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def functionalize(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Later readers of a tensor changed in place read the operation's result instead.

    Augmented assignments become plain operations, `view` becomes `reshape` because maps may be
    channels-last here. `nn.Identity` goes.
    """
    order = {node: i for i, node in enumerate(gm.graph.nodes)}
    for node in list(gm.graph.nodes):
        if elementwise(node) == "identity":
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            continue
        if _changes_its_input(node):
            changed = node.args[0]
            for user in list(changed.users):
                if order[user] > order[node]:
                    user.replace_input_with(changed, node)
        if node.op == "call_function" and node.target in _IN_PLACE:
            node.target = _IN_PLACE[node.target]
        if node.op == "call_method" and node.target == "view" and not _views_as_dtype(node):
            node.target = "reshape"
    gm.recompile()
    return gm


def _changes_its_input(node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    return changes_its_input(node, module_of(node), _IN_PLACE)


def _views_as_dtype(node: fx.Node) -> bool:
    return any(isinstance(arg, torch.dtype) for arg in (*node.args, *node.kwargs.values()))
