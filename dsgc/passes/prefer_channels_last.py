"""Give images channels-last strides, in which convolutions are fastest on CPUs."""

from __future__ import annotations

import torch
from torch import fx

from dsgc.passes.context import Context
from dsgc.passes.patterns import shape_of

__all__ = ["prefer_channels_last"]


def prefer_channels_last(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Convert every 4-D floating-point input; what is in that order already is not copied.

    Both graphs then run their dense layers on the same strides, hence with the same rounding.
    """
    for node in gm.graph.find_nodes(op="placeholder"):
        dtype = node.meta.get("dtype")
        if len(shape_of(node) or ()) != 4 or dtype is None or not dtype.is_floating_point:
            continue
        with gm.graph.inserting_after(node):
            converted = gm.graph.create_node(
                "call_method",
                "contiguous",
                (node,),
                {"memory_format": torch.channels_last},
                name=f"{node.name}_channels_last",
            )
        converted.meta = dict(node.meta)
        node.replace_all_uses_with(
            converted, delete_user_cb=lambda user, own=converted: user is not own
        )
    gm.recompile()
    return gm
