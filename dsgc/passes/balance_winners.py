"""Choose whole numbers of winners so that the network as a whole meets the asked sparsity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from dsgc.passes.context import LayerDecision

__all__ = ["Share", "balance_winners"]

_TOLERANCE = 0.02


@dataclass(frozen=True)
class Share:
    """What a sparse layer keeps: `winners` blocks of each position (position scope), and the
    density that was asked (sample and batch scope)."""

    winners: int
    density: float


def balance_winners(decisions: Iterable[LayerDecision], factor: float = 1.0) -> dict[str, Share]:
    """Winners of every sparse layer, by site, with all sparsities multiplied by `factor`.

    Rounding alone can miss the asked sparsity by a lot when layers have few blocks. So layers are
    moved to their other rounding, the one that helps most first, until the density weighted by
    multiply-adds is within two points of the asked one or no move helps. At least one block wins.
    """
    layers = [d for d in decisions if d.sparse and d.settings is not None and d.blocks]
    exact: dict[str, float] = {}
    winners: dict[str, int] = {}
    shares: dict[str, Share] = {}
    for layer in layers:
        density = 1.0 - layer.settings.sparsity * factor if layer.settings else 1.0
        exact[layer.site] = density * layer.blocks
        winners[layer.site] = min(layer.blocks, max(1, math.floor(exact[layer.site] + 0.5)))
        shares[layer.site] = Share(winners[layer.site], density)
    counted = [d for d in layers if d.settings is not None and d.settings.scope == "position"]
    _flip(counted, exact, winners)
    return {site: Share(winners[site], share.density) for site, share in shares.items()}


def _flip(layers: list[LayerDecision], exact: dict[str, float], winners: dict[str, int]) -> None:
    total = sum(layer.macs for layer in layers)
    if not total:
        return
    weight = {layer.site: layer.macs / layer.blocks / total for layer in layers}
    excess = sum((winners[site] - exact[site]) * each for site, each in weight.items())
    while abs(excess) > _TOLERANCE:
        best, best_excess = "", excess
        for layer in layers:
            step = -1 if excess > 0 else 1
            changed = winners[layer.site] + step
            if not 1 <= changed <= layer.blocks or abs(changed - exact[layer.site]) >= 1.0:
                continue
            after = excess + step * weight[layer.site]
            if abs(after) < abs(best_excess):
                best, best_excess = layer.site, after
        if not best:
            return
        winners[best] += -1 if excess > 0 else 1
        excess = best_excess
