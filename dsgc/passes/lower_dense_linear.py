"""Give linear layers that stay dense to `dense_linear`, which reads their weights only once."""

from __future__ import annotations

import torch
from torch import fx, nn

import dsgc.ops  # noqa: F401  defines torch.ops.dsgc
from dsgc.passes.context import Context
from dsgc.passes.patterns import layer_module, shape_of

__all__ = ["lower_dense_linear"]

# Below, calling the operator costs as much as it saves.
_FEWEST_WEIGHTS = 1 << 20


def lower_dense_linear(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Replace calls of large linear layers on matrices; the operator itself sees the rows."""
    for node in list(gm.graph.nodes):
        if (layer := _large_linear(node)) is None:
            continue
        names = ("weight", "bias") if layer.bias is not None else ("weight",)
        with gm.graph.inserting_before(node):
            found = [gm.graph.get_attr(f"{node.target}.{name}") for name in names]
        for one in found:
            one.stack_trace, one.meta["layer"] = node.stack_trace, node.meta.get("layer", "")
        # In place: the node keeps its name, and its readers.
        node.op, node.target = "call_function", torch.ops.dsgc.dense_linear.default
        node.args = (node.args[0], *found, None)[:3]
    gm.recompile()
    return gm


def _large_linear(node: fx.Node) -> nn.Linear | None:
    """The linear layer that a node calls, if it is large and an ordinary one."""
    layer = layer_module(node, (nn.Linear,))
    # Parametrized ones are computed, not fetched.
    if not isinstance(layer, nn.Linear) or not {"weight", "bias"} <= layer._parameters.keys():
        return None
    shape = shape_of(node)
    known = shape is not None and len(shape) == 2
    real = node.meta.get("dtype") in (torch.float32, torch.float64)
    return layer if known and real and layer.weight.numel() >= _FEWEST_WEIGHTS else None
