"""Note for every node which layer it belongs to: its own, or the last one before it."""

from __future__ import annotations

from torch import fx

from dsgc.passes.context import Context

__all__ = ["belongs_to", "mark_layers"]


def mark_layers(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Write `node.meta["layer"]`, the site of a layer; "" before the first one.

    A batch norm, an activation function or a pooling belongs to the layer whose output it works
    on; where several come together, to the one that runs last.
    """
    order = {site: i for i, site in enumerate(context.decisions)}
    for node in gm.graph.nodes:
        decision = node.meta.get("decision")
        if decision is not None:
            node.meta["layer"] = decision.site
            continue
        sources = [belongs_to(source) for source in node.all_input_nodes]
        node.meta["layer"] = max(sources, key=lambda site: order.get(site, -1), default="")
    return gm


def belongs_to(node: fx.Node) -> str:
    """The layer that a node of any graph belongs to; what a pass added belongs where it reads."""
    while "layer" not in node.meta:
        sources = node.all_input_nodes
        if not sources:
            return ""
        node = sources[0]
    return str(node.meta["layer"])
