"""Mask the output of BatchNorm with the selection of the layer before it (the double mask)."""

from __future__ import annotations

from torch import fx

from dsgc.config import LayerSettings
from dsgc.ops.masked import masked_conv2d, masked_linear
from dsgc.ops.normalization import MaskedBatchNorm
from dsgc.passes.context import Context
from dsgc.passes.patterns import batch_norm, elementwise, module_of, shape_of
from dsgc.select import Selector

__all__ = ["insert_double_mask", "mask_before"]


def mask_before(node: object) -> tuple[fx.Node, LayerSettings] | None:
    """The mask outside which the value of `node` is zero, and the settings of its layer.

    Follows activation functions with f(0) = 0 and batch norms that are masked already, so both
    conv-BN-ReLU and conv-ReLU-BN are found.
    """
    while isinstance(node, fx.Node):
        if node.target in (masked_conv2d, masked_linear):
            mask, decision = node.args[3], node.meta["decision"]
            if node.target is masked_linear and len(shape_of(node) or ()) != 2:
                return None  # a mask of rows does not fit the statistics of higher ranks
            return (mask, decision.settings) if isinstance(mask, fx.Node) else None
        if elementwise(node) is None and not isinstance(module_of(node), MaskedBatchNorm):
            return None
        node = node.args[0]
    return None


def insert_double_mask(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """`bn(y)` becomes `MaskedBatchNorm(bn)(y, mask)` where y is zero outside mask.

    If y is the layer's own output, its selector ranks what bn makes of it.
    """
    for node in list(gm.graph.nodes):
        norm = batch_norm(node)
        found = mask_before(node.args[0]) if norm is not None else None
        if norm is None or found is None:
            continue
        mask, settings = found
        selector, direct = module_of(mask), node.args[0].target in (masked_conv2d, masked_linear)
        if settings.ranking == "normalized" and direct and isinstance(selector, Selector):
            selector.rank_after(norm)
        target = f"dsgc_norm.{node.name}"
        gm.add_submodule(target, MaskedBatchNorm(norm, settings.bn_stats, settings.block))
        node.target = target
        node.args = (node.args[0], mask)
    gm.recompile()
    return gm
