"""What to change so that more of a model becomes sparse, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dsgc.config import SparsityConfig
from dsgc.engine import Engine
from dsgc.inspect.words import listed
from dsgc.passes.balance_winners import balance_winners
from dsgc.passes.choose_layers import choose_layers
from dsgc.passes.context import Context, LayerDecision
from dsgc.passes.patterns import shape_of
from dsgc.program import Program

__all__ = ["advice"]

_LARGER = (4, 16, 64)  # times the batch
_SPARSER = (0.9, 0.95)
_MANY_LISTED = 4
_FAR = 0.1  # from the sparsity asked, of a layer of few blocks


def advice(engine: Engine, programs: Sequence[Program], batch: int) -> tuple[str, ...]:
    """Recommendations for a model whose layers were looked at and not settled yet."""
    decisions = list(engine.decisions.values())
    return (*_bound(decisions), *_dear(engine, programs, batch), *_coarse(decisions))


def _bound(layers: Sequence[LayerDecision]) -> list[str]:
    """How much of the work sparse layers do, and what that means at most."""
    whole = sum(layer.macs for layer in layers)
    sparse = sum(layer.macs for layer in layers if layer.sparse)
    if not whole or not sparse:
        return []
    rest = whole - sparse
    bound = f"{whole / rest:.3g} times faster at the very most" if rest else "all of it"
    return [
        f"sparse layers do {sparse / whole:.1%} of the dense multiply-adds; the rest stays: {bound}"
    ]


def _dear(engine: Engine, programs: Sequence[Program], batch: int) -> list[str]:
    """Layers that are too dear as they are, and what would make them pay."""
    left = {site for site, one in engine.decisions.items() if one.too_dear}
    said: list[str] = []
    for times in _LARGER:
        found = left & _paying(engine, programs, engine.config, times) if left else set()
        if found:
            said.append(f"{_some(found)} would pay at a batch of {times * batch}")
        left = left - found
    for sparsity in _SPARSER:
        if not left or sparsity <= engine.config.sparsity:
            continue
        found = left & _paying(engine, programs, replace(engine.config, sparsity=sparsity), 1)
        if found:
            said.append(f"{_some(found)} would pay at sparsity {sparsity:g}")
        left = left - found
    return said


def _paying(
    engine: Engine, programs: Sequence[Program], config: SparsityConfig, times: int
) -> set[str]:
    """The layers that other settings would make sparse, or a batch `times` as large."""

    def no_selector(decision: LayerDecision) -> None:
        raise NotImplementedError(f"{decision.site} is only looked at")

    decisions: dict[str, LayerDecision] = {}
    for program in programs:
        context = Context(engine.model, config, no_selector, decisions=decisions)  # type: ignore[arg-type]
        context.last_part = program.context.last_part
        graph = program.dense.graph
        before = {node: dict(node.meta) for node in graph.nodes}
        try:
            for node in graph.nodes:
                shape = shape_of(node)
                if shape:
                    node.meta["shape"] = (shape[0] * times, *shape[1:])
            choose_layers(program.dense, context)
        finally:
            for node, meta in before.items():
                node.meta = meta
    return {site for site, decision in decisions.items() if decision.sparse}


def _coarse(decisions: list[LayerDecision]) -> list[str]:
    """Layers with so few blocks that rounding moves them far from the sparsity asked."""
    shares = balance_winners(decisions)
    found = set()
    for layer in decisions:
        settings = layer.settings
        if not layer.sparse or settings is None or settings.scope != "position":
            continue
        got = 1.0 - shares[layer.site].winners / layer.blocks
        if abs(got - settings.sparsity) > _FAR and settings.block > 1:
            found.add(layer.site)
    if not found:
        return []
    return [f"{_some(found)} cannot come close to its sparsity: take a smaller block for it"]


def _some(names: set[str]) -> str:
    return listed(sorted(names), _MANY_LISTED)
