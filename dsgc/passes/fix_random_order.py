"""Let random modules see maps in the order of the dense model, so that they draw alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dsgc.passes.context import Context
from dsgc.passes.patterns import module_of, shape_of
from dsgc.tracing.mode_dropout import ModeDropout

__all__ = ["fix_random_order"]

_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU, ModeDropout)
_FUNCTIONS: tuple[Any, ...] = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    F.rrelu, torch.dropout, torch.rand_like, torch.randn_like, torch.bernoulli,
)  # fmt: skip


def fix_random_order(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Make maps contiguous before they meet randomness.

    Random numbers are drawn in the order of memory, and the graphs work channels-last: the same
    seed would drop other entries than in the dense model.
    """
    for node in gm.graph.nodes:
        random = isinstance(module_of(node), _MODULES) or node.target in _FUNCTIONS
        source = node.args[0] if random and node.args else None
        shape = shape_of(source)
        if shape is None or len(shape) != 4 or not isinstance(source, fx.Node):
            continue
        with gm.graph.inserting_before(node):
            ordered = gm.graph.create_node(
                "call_method", "contiguous", (source,), name=f"{node.name}_contiguous"
            )
        ordered.meta["shape"] = shape
        node.replace_input_with(source, ordered)
    gm.recompile()
    return gm
