"""Give every value one node: what an in-place operation changed is read from the operation."""

from __future__ import annotations

import torch
from torch import fx

from dsgc.passes.context import Context
from dsgc.passes.in_place import AUGMENTED, changes_its_input
from dsgc.passes.patterns import elementwise, module_of

__all__ = ["functionalize"]


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
        if node.op == "call_function" and node.target in AUGMENTED:
            node.target = AUGMENTED[node.target]
        if node.op == "call_method" and node.target == "view" and not _views_as_dtype(node):
            node.target = "reshape"
    gm.recompile()
    return gm


def _changes_its_input(node: fx.Node) -> bool:
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    return changes_its_input(node, module_of(node))


def _views_as_dtype(node: fx.Node) -> bool:
    return any(isinstance(arg, torch.dtype) for arg in (*node.args, *node.kwargs.values()))
