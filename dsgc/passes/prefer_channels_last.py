"""Give images channels-last strides, in which convolutions are fastest on CPUs, and results those
of the dense model.
"""

from __future__ import annotations

import torch
from torch import fx

from dsgc.passes.context import Context
from dsgc.passes.memory_order import AS_GIVEN, is_map, restore_order
from dsgc.passes.patterns import module_of
from dsgc.tracing.blame import is_torch_layer

__all__ = ["prefer_channels_last"]


def prefer_channels_last(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Convert every 4-D floating-point input; what is in that order already is not copied.

    Both graphs then run their dense layers on the same strides, hence with the same rounding.
    Maps are contiguous for the user's code, as results and where modules run unrecorded, unless
    inputs or weights that they depend on are channels-last when the graph runs: the dense model
    does the same.
    """
    for node in gm.graph.find_nodes(op="placeholder"):
        dtype = node.meta.get("dtype")
        if not is_map(node) or dtype is None or not dtype.is_floating_point:
            continue
        with gm.graph.inserting_after(node):
            converted = gm.graph.create_node(
                "call_method",
                "contiguous",
                (node,),
                {"memory_format": torch.channels_last},
                name=f"{node.name}_channels_last",
            )
        converted.meta = {**node.meta, AS_GIVEN: node}
        # An input that is a result as well is returned as it came.
        node.replace_all_uses_with(
            converted,
            delete_user_cb=lambda user, own=converted: (
                user is not own and user.op != "output" and not _is_users_code(user)
            ),
        )
    for node in list(gm.graph.nodes):
        if node.op == "output" or _is_users_code(node):
            for result in node.all_input_nodes:
                restore_order(gm, result, node)
    gm.recompile()
    return gm


def _is_users_code(node: fx.Node) -> bool:
    """Whether `node` calls code that was not recorded, and that may look at strides."""
    module = module_of(node)
    if module is None or is_torch_layer(module):
        return False
    return not type(module).__module__.startswith("dsgc.")
