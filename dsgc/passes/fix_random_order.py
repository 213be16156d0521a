"""Let random modules see maps in the order of the dense model, so that they draw alike."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dsgc.passes.context import Context
from dsgc.passes.memory_order import restore_order
from dsgc.passes.patterns import module_of
from dsgc.tracing.mode_dropout import ModeDropout

__all__ = ["fix_random_order"]

_MODULES = (nn.modules.dropout._DropoutNd, nn.RReLU, ModeDropout)
_FUNCTIONS: tuple[Any, ...] = (
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    F.rrelu, torch.dropout, torch.rand_like, torch.randn_like, torch.bernoulli,
)  # fmt: skip


def fix_random_order(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Give maps the order that they have in the dense model before they meet randomness.

    Random numbers are drawn in the order of memory, and the graphs work channels-last: the same
    seed would drop other entries than in the dense model.
    """
    for node in list(gm.graph.nodes):
        source = node.args[0] if node.args else None
        random = isinstance(module_of(node), _MODULES) or node.target in _FUNCTIONS
        if random and isinstance(source, fx.Node):
            restore_order(gm, source, node)
    gm.recompile()
    return gm
