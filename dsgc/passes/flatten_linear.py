"""Flatten + linear becomes a convolution with the whole map as kernel: maps stay packed."""

from __future__ import annotations

import torch
from torch import fx

from dsgc.ops.masked import masked_conv2d, masked_linear
from dsgc.passes.context import Context
from dsgc.passes.patterns import is_flatten, remove_dead, shape_of

__all__ = ["flatten_linear"]


def flatten_linear(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Rewrite sparse linear layers that read a flattened map; results stay what they were."""
    for node in list(gm.graph.nodes):
        decision = node.meta.get("decision")
        if node.target is not masked_linear or decision is None:
            continue
        size = decision.geometry.map_size
        flat = node.args[0]
        if size is None or not is_flatten(flat) or (shape_of(flat.args[0]) or ())[1:] != size:
            continue
        _as_convolution(gm.graph, node, flat.args[0], (decision.geometry.out_channels, *size))
    remove_dead(gm)
    gm.recompile()
    return gm


def _as_convolution(
    graph: fx.Graph, node: fx.Node, source: fx.Node, weight_shape: tuple[int, ...]
) -> None:
    _, weight, bias, mask, block = node.args
    batch = (shape_of(node) or (0,))[0]
    with graph.inserting_before(node):
        kernel = graph.create_node(
            "call_method", "reshape", (weight, weight_shape), name=f"{node.name}_kernel"
        )
        conv = graph.create_node(
            "call_function",
            masked_conv2d,
            (source, kernel, bias, mask, block, (1, 1), (0, 0), (1, 1)),
            name=f"{node.name}_map",
        )
    conv.meta = dict(node.meta)
    conv.meta["shape"] = (batch, weight_shape[0], 1, 1)
    conv.stack_trace = node.stack_trace
    # BatchNorm or further layers read rows; a map of 1 x 1 stays packed through this.
    node.target = torch.flatten
    node.args = (conv, 1)
    node.meta.pop("decision")
