"""A convolution before a pooling selects once per pooling window, so that sparsity survives it."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from dsgc.passes.context import Context
from dsgc.passes.patterns import batch_norm, elementwise, pool

__all__ = ["share_pool_masks"]


def share_pool_masks(gm: fx.GraphModule, context: Context) -> fx.GraphModule:
    """Set the tile of sparse convolutions whose only way on is a pooling with stride = kernel."""
    for node in gm.graph.nodes:
        decision = node.meta.get("decision")
        if context.decided or decision is None or not decision.sparse or decision.kind == "Linear":
            continue
        settings = decision.settings
        if not settings.share_pool or settings.scope != "position":
            continue
        tile = _window_behind(node)
        if tile is not None:
            decision = replace(decision, settings=replace(settings, tile=tile))
            node.meta["decision"] = context.decisions[decision.site] = decision
    return gm


def _window_behind(node: fx.Node) -> tuple[int, int] | None:
    while len(node.users) == 1:
        node = next(iter(node.users))
        pooling = pool(node)
        if pooling is not None:
            plain = pooling.stride == pooling.kernel and pooling.padding == (0, 0)
            return pooling.kernel if plain else None
        if elementwise(node) is None and batch_norm(node) is None:
            return None
    return None
