"""What compiling would do to a model, layer by layer, before anything is compiled."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor, nn

from dsgc.api import settled
from dsgc.config import SparsityConfig
from dsgc.engine import Engine
from dsgc.errors import InputError
from dsgc.example_inputs import positional
from dsgc.inspect.advice import advice
from dsgc.inspect.kept import KeptBytes
from dsgc.inspect.shadow import shadow_of
from dsgc.inspect.tables import Column, LayerTable, Tabular
from dsgc.inspect.words import listed, short_place
from dsgc.measure import format_bytes, format_count
from dsgc.module import SparseModule
from dsgc.passes.balance_winners import balance_winners
from dsgc.passes.context import LayerDecision
from dsgc.passes.patterns import shape_of
from dsgc.program import Program

__all__ = ["Explanation", "LayerPlan", "explain"]

_log = logging.getLogger(__name__)

_MANY_LISTED = 6
_COLUMNS = (
    Column("layer"),
    Column("source", minor=4),
    Column("output", minor=3),
    Column("decision"),
    Column("block", number=True, minor=2),
    Column("winners", number=True),
    Column("dense", number=True),
    Column("done", number=True),
    Column("search", number=True),
    Column("kept dense", number=True, minor=1),
    Column("kept", number=True),
)


@dataclass(frozen=True)
class LayerPlan:
    """What compiling would do to one call of a layer.

    Attributes:
        name: of the module, with `#2` and so on for further calls.
        kind: its class.
        where: `file:line` of the user's code that calls it; "" if that is not known.
        shape: of its output without the batch; None if it did not run.
        sparse: the decision, and `reason` says why.
        block: channels selected together; 0 for a dense layer.
        winners: blocks computed at a position, out of `blocks`; 0 for a dense layer.
        sparsity: fraction of output neurons that would be left out.
        dense: multiply-adds of one sample, forward, in the dense layer.
        done: the same when sparse, if selections of input and output are independent.
        search: multiply-adds of finding the selection, of one sample.
        kept_dense: bytes kept for backward by this layer and what follows it up to the next one,
            for the whole batch, in the dense model; None if that could not be found out.
        kept: the same when sparse.
    """

    name: str
    kind: str
    where: str
    shape: tuple[int, ...] | None
    sparse: bool
    reason: str
    block: int
    winners: int
    blocks: int
    sparsity: float
    dense: int
    done: int
    search: int
    kept_dense: int | None
    kept: int | None


@dataclass(frozen=True)
class Explanation(Tabular):
    """What `dsgc.explain` found; print it, or take it apart.

    Attributes:
        model: the class of the model.
        sparsity: what was asked.
        batch: samples of the example.
        layers: in the order of execution.
        before: bytes kept for backward before the first layer: (dense, sparse).
        advice: what to change for more speed, in sentences.
    """

    model: str
    sparsity: float
    batch: int
    layers: tuple[LayerPlan, ...]
    before: tuple[int, int]
    advice: tuple[str, ...]

    def table(self) -> LayerTable:
        """A row a layer, totals and recommendations."""
        rows = tuple(_row(layer) for layer in self.layers)
        title = f"{self.model} at sparsity {self.sparsity:g}, batch {self.batch}"
        return LayerTable(title, _COLUMNS, rows, self._totals(), self._notes())

    def _totals(self) -> tuple[str, ...]:
        sums = [sum(getattr(x, f) for x in self.layers) for f in ("dense", "done", "search")]
        kept = ["-", "-"]
        if all(layer.kept_dense is not None for layer in self.layers):
            kept[0] = format_bytes(self.before[0] + sum(x.kept_dense or 0 for x in self.layers))
            kept[1] = format_bytes(self.before[1] + sum(x.kept or 0 for x in self.layers))
        sparse = sum(layer.sparse for layer in self.layers)
        return (
            "total", "", "", f"{sparse} of {len(self.layers)}", "", "",
            *(format_count(total) for total in sums), *kept,
        )  # fmt: skip

    def _notes(self) -> tuple[str, ...]:
        reasons: dict[str, list[str]] = {}
        for layer in self.layers:
            if not layer.sparse:
                reasons.setdefault(layer.reason, []).append(layer.name)
        dense = [f"dense: {listed(names, _MANY_LISTED)}: {why}" for why, names in reasons.items()]
        units = (
            "dense, done and search are multiply-adds of one sample forward; kept is for the "
            "backward pass of the batch, with what follows a layer up to the next one"
        )
        return (*dense, *self.advice, units)

    def records(self) -> list[dict[str, Any]]:
        """A record a layer."""
        return [asdict(layer) for layer in self.layers]


def explain(
    model: nn.Module,
    sparsity: float | None = None,
    *,
    config: SparsityConfig | None = None,
    example_inputs: Tensor | tuple[Any, ...] | list[Any],
) -> Explanation:
    """Say what `dsgc.compile` would make of a model, and why, without compiling or running it.

    Shapes are propagated and nothing else, so a model on the meta device will do. Only where the
    model's own code looks at data does the dense model run once, in eval mode.

    Args:
        model: any module; it is left as it is.
        sparsity: fraction of neurons left out, 0.8 if neither it nor `config` is given.
        config: all settings; with a schedule, those at its end count.
        example_inputs: positional inputs of the model. Their shapes count: a layer that does not
            pay for a small batch may pay for a large one.

    Raises:
        ConfigError: a setting has an impossible value.
        UnknownLayerError: a rule matches no layer.
        NothingToSparsifyError: the model has no convolution and no linear layer.
        InputError: the model does not take these inputs.
    """
    args = positional(example_inputs)
    if not any(isinstance(one, Tensor) for one in args):
        raise InputError("example_inputs must hold a tensor: its shape decides what pays")
    dense, whole = settled(model, sparsity, config)
    final = replace(whole, schedule="constant", warmup_steps=0)
    shadow = shadow_of(dense, args)
    try:
        with shadow.running():
            found = _Plan(shadow.model, final, shadow.args)
    except Exception as error:  # code of the user that looks at data, which fake tensors lack
        _log.info("explain: shapes alone do not do, the model runs: %s", error)
        if any(p.device.type == "meta" for p in dense.parameters()):
            raise
        mirror = copy.deepcopy(dense, {id(p): p for p in dense.parameters()})
        found, kept = _Plan(mirror, final, args), None
    else:
        with shadow.running():
            kept = found.kept()
    return found.explanation(type(dense).__name__, kept)


class _Plan:
    """The decisions about a model, and its graphs."""

    def __init__(self, model: nn.Module, config: SparsityConfig, args: tuple[Any, ...]) -> None:
        self.config = config
        self.sparse = SparseModule(model, config, "reference")
        self.sparse._check(args, {})
        self.engine: Engine = self.sparse._engine
        self.programs = self.engine.look(args, {})
        self.decisions = self.engine.decisions
        self.shapes = self._shapes()
        tensors = [one for one in args if isinstance(one, Tensor)]
        self.batch = int(tensors[0].shape[0]) if tensors[0].dim() else 1
        self.advice = advice(self.engine, self.programs, self.batch)
        if any(decision.sparse for decision in self.decisions.values()):
            self.engine.settle(self.programs)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        found = {}
        for program in self.programs:
            for node in program.dense.graph.nodes:
                shape, decision = shape_of(node), node.meta.get("decision")
                if decision is not None and shape is not None:
                    found[decision.site] = shape[1:]
        return found

    def kept(self) -> dict[str, tuple[int, int]]:
        """Bytes kept for backward by layer, dense and sparse."""
        for module in self.sparse._dense[0].modules():
            module.training = True
        dense, sparse = KeptBytes(self._permanent()), KeptBytes(self._permanent())
        for program in self.programs:
            if self.engine.decided:
                again: Program = self.engine.again(program)
                with sparse.watching():
                    sparse.runner(program.lowered("dsgc")).run(*program.example)
            else:
                again = program
            with dense.watching():
                dense.runner(again.dense).run(*program.example)
        before = dense.by_layer()
        after = sparse.by_layer() if self.engine.decided else before
        return {site: (before.get(site, 0), after.get(site, 0)) for site in ("", *self.decisions)}

    def _permanent(self) -> list[Tensor]:
        return [*self.sparse.parameters(), *self.sparse.buffers()]

    def explanation(self, name: str, kept: Mapping[str, tuple[int, int]] | None) -> Explanation:
        shares = balance_winners(self.decisions.values())
        layers = tuple(
            _plan(
                decision,
                self.shapes.get(site),
                shares[site].winners if site in shares else 0,
                kept[site] if kept is not None else (None, None),
            )
            for site, decision in self.decisions.items()
        )
        return Explanation(
            name,
            self.config.sparsity,
            self.batch,
            layers,
            kept[""] if kept is not None else (0, 0),
            (*self._untraced(), *self.advice),
        )

    def _untraced(self) -> tuple[str, ...]:
        return tuple(
            f"{path or 'the model'} runs by its own code, parts of it as graphs: {why}"
            for path, why in self.engine.untraced.items()
        )


def _plan(
    decision: LayerDecision,
    shape: tuple[int, ...] | None,
    winners: int,
    kept: tuple[int | None, int | None],
) -> LayerPlan:
    density = winners / decision.blocks if decision.sparse and decision.blocks else 1.0
    settings = decision.settings if decision.sparse else None
    if settings is not None and settings.scope != "position":
        density = 1.0 - settings.sparsity
    done = decision.macs * density * (decision.input_density if decision.sparse else 1.0)
    return LayerPlan(
        name=decision.site,
        kind=decision.kind,
        where=decision.where,
        shape=shape,
        sparse=decision.sparse,
        reason=decision.reason,
        block=settings.block if settings is not None else 0,
        winners=winners,
        blocks=decision.blocks if decision.sparse else 0,
        sparsity=1.0 - density,
        dense=decision.macs,
        done=round(done),
        search=decision.search_macs if decision.sparse else 0,
        kept_dense=kept[0],
        kept=kept[1],
    )


def _row(layer: LayerPlan) -> tuple[str, ...]:
    chosen = f"{layer.winners}/{layer.blocks}" if layer.sparse else ""
    return (
        layer.name,
        short_place(layer.where),
        "x".join(map(str, layer.shape)) if layer.shape is not None else "-",
        "sparse" if layer.sparse else "dense",
        str(layer.block or ""),
        chosen,
        format_count(layer.dense),
        format_count(layer.done),
        format_count(layer.search) if layer.search else "",
        *("-" if size is None else format_bytes(size) for size in (layer.kept_dense, layer.kept)),
    )
