"""What a compiled model did: measured, layer by layer, beside the dense model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from dsgc.errors import NothingToSparsifyError
from dsgc.inspect.kept import KeptBytes
from dsgc.inspect.load import BlockLoad, load_of
from dsgc.inspect.sides import Side, Sides
from dsgc.inspect.tables import Column, LayerTable, Tabular
from dsgc.inspect.timing import LayerSeconds, Progress, SideSeconds, time_sides
from dsgc.inspect.words import short_place
from dsgc.measure import format_bytes, interleaved
from dsgc.module import SparseModule
from dsgc.passes.context import LayerDecision
from dsgc.watch import Watched

__all__ = ["LayerReport", "Report", "report"]

_TIMES = ("forward", "backward")
_SLOWER = 1.05  # of the dense layer, from which a layer is called slower


@dataclass(frozen=True)
class LayerReport:
    """What was measured of one call of a layer, with what follows it up to the next one.

    Attributes:
        name: of the module, with `#2` and so on for further calls.
        where: `file:line` of the user's code that calls it; "" if that is not known.
        sparse: the decision, and `reason` says why.
        block: channels selected together; 0 for a dense layer.
        sparsity: fraction of the output neurons that was left out; 0 for a dense layer.
        load: how evenly its blocks were used; None for a dense layer.
        forward, backward: median seconds.
        search: seconds of finding the selection, part of `forward`.
        dense_forward, dense_backward: median seconds of the dense layer.
        kept, kept_dense: bytes kept for backward; None in inference.
    """

    name: str
    where: str
    sparse: bool
    reason: str
    block: int
    sparsity: float
    load: BlockLoad | None
    forward: float
    backward: float
    search: float
    dense_forward: float
    dense_backward: float
    kept: int | None
    kept_dense: int | None

    @property
    def ratio(self) -> float:
        """How many times faster than the dense layer it was."""
        spent = self.forward + self.backward
        return (self.dense_forward + self.dense_backward) / spent if spent > 0 else 1.0

    @property
    def search_share(self) -> float:
        """Search, as a part of the dense layer's forward time."""
        return self.search / self.dense_forward if self.dense_forward > 0 else 0.0


@dataclass(frozen=True)
class Report(Tabular):
    """What `sparse.report()` found; print it, or take it apart.

    Attributes:
        model: the class of the model.
        mode: "training" or "inference".
        backend: "tvm" or "reference", what ran.
        threads: that torch ran on.
        rounds: runs that the medians are of.
        layers: in the order of execution.
        before: what happens before the first layer, as a layer.
        dense_seconds, seconds: of whole runs, node by node.
        seconds_of: median seconds of every node of the graph that ran, forward and backward.
        not_yet_sparse: sparsity grows, and is so low yet that the module itself runs dense.
        call: median seconds of a call in inference, dense and sparse; None in training.
    """

    model: str
    mode: str
    backend: str
    threads: int
    rounds: int
    layers: tuple[LayerReport, ...]
    before: LayerReport
    dense_seconds: float
    seconds: float
    seconds_of: dict[str, float]
    not_yet_sparse: bool
    call: tuple[float, float] | None = None

    def table(self) -> LayerTable:
        """A row a layer, totals, and what to look at."""
        training = self.mode == "training"
        times = [f"{name} ms" for name in (_TIMES if training else _TIMES[:1])]
        columns = (
            Column("layer"),
            Column("source", minor=4),
            Column("decision"),
            Column("block", number=True, minor=3),
            Column("sparsity", number=True),
            Column("busiest", number=True, minor=2),
            *(Column(name, number=True) for name in times),
            Column("ratio", number=True),
            Column("search", number=True),
            *([Column("kept", number=True, minor=1)] if training else []),
        )
        title = f"{self.model}, {self.mode}, {self.backend}, {self.threads} threads"
        rows = [self.before] if self.before.dense_forward or self.before.kept else []
        rows += self.layers
        texts = tuple(_row(layer, training) for layer in rows)
        return LayerTable(title, columns, texts, self._totals(training), self._notes())

    def _totals(self, training: bool) -> tuple[str, ...]:
        every = (self.before, *self.layers)
        search = sum(layer.search for layer in every)
        kept = [format_bytes(sum(getattr(x, f) or 0 for x in every)) for f in _KEPT]
        dense, mine = (
            [sum(getattr(x, prefix + one) for x in every) for one in _TIMES]
            for prefix in ("dense_", "")
        )
        times = [f"{1e3 * a:.1f} -> {1e3 * b:.1f}" for a, b in zip(dense, mine, strict=True)]
        return (
            "total", "", "", "", "", "", *(times if training else times[:1]),
            f"{sum(dense) / max(sum(mine), 1e-12):.2f}x", f"{search / max(dense[0], 1e-12):.1%}",
            *([" -> ".join(kept)] if training else []),
        )  # fmt: skip

    def _notes(self) -> tuple[str, ...]:
        said = [f"dense: {one.name}: {one.reason}" for one in self.layers if not one.sparse]
        if self.not_yet_sparse:
            said.append(
                "sparsity has not grown enough yet: the module still runs dense, because what is "
                "measured here would be slower"
            )
        if self.call is not None:
            dense, mine = self.call
            said.append(
                f"a call takes {1e3 * mine:.2f} ms, {1e3 * dense:.2f} dense, {dense / mine:.2f}x: "
                "its kernels follow each other at once, and the rows measure them one by one"
            )
        for layer in self.layers:
            if layer.sparse and layer.ratio * _SLOWER < 1.0:
                said.append(f"{layer.name} is sparse and slower than dense: {layer.ratio:.2f}x")
            if layer.load is not None and layer.load.dead:
                said.append(f"{layer.name}: {layer.load.dead_in_words()} never won here")
        said.append(
            "times are medians of this machine, dense -> sparse, run node by node, with what "
            "follows a layer up to the next one; `dsgc bench` measures whole steps"
        )
        return tuple(said)

    def records(self) -> list[dict[str, Any]]:
        """A record a layer; what `load` holds is in columns of its own."""
        rows = []
        for layer in self.layers:
            row = asdict(layer)
            load = row.pop("load")
            rows.append({**row, **{f"load_{k}": v for k, v in (load or {}).items()}})
        return rows


_KEPT = ("kept_dense", "kept")


def report(
    sparse: SparseModule,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    rounds: int,
    progress: Progress | None = None,
) -> Report:
    """See `SparseModule.report`."""
    sparse._check(args, kwargs)
    sparse._engine.prepare(args, kwargs)
    if not any(decision.sparse for decision in sparse.decisions.values()):
        reasons = {site: one.reason for site, one in sparse.decisions.items()}
        raise NothingToSparsifyError(
            "no layer is sparse, so there is nothing to compare; `sparse.decisions` says why",
            reasons,
        )
    training = sparse.training
    sides = Sides(sparse, args, kwargs)
    loads = _loads(sparse, sides)
    seconds = time_sides(sides, training=training, rounds=rounds, report=progress)
    kept = {side: _kept(sides, side) for side in seconds} if training else None
    layers = [
        _layer(decision, loads.get(site), seconds, kept, site)
        for site, decision in sparse.decisions.items()
    ]
    start = LayerDecision("(before)", "", "", False, "it comes before the first layer")
    whole = {side: one.forward + one.backward for side, one in seconds.items()}
    return Report(
        type(sparse._dense[0]).__name__,
        "training" if training else "inference",
        sparse.backend,
        torch.get_num_threads(),
        rounds,
        tuple(layers),
        _layer(start, None, seconds, kept, ""),
        whole["dense"],
        whole["sparse"],
        {one.name: one.forward + one.backward for one in seconds["sparse"].nodes.values()},
        sparse._bank.dense_now,
        None if training else _call(sparse, args, kwargs, rounds),
    )


@torch.no_grad()
def _call(
    sparse: SparseModule, args: tuple[Any, ...], kwargs: dict[str, Any], rounds: int
) -> tuple[float, float]:
    """Median seconds of a call for inference, dense and sparse."""
    calls = {
        "dense": lambda: sparse._dense[0](*args, **kwargs),
        "sparse": lambda: sparse(*args, **kwargs),
    }
    found = interleaved(calls, rounds=rounds)
    return found["dense"].median, found["sparse"].median


def _loads(sparse: SparseModule, sides: Sides) -> dict[str, BlockLoad]:
    with sides.untouched(), torch.no_grad(), sparse._bank.hold():
        sides.run("sparse", Watched)
        held = sparse._bank.held(sparse._decisions)
    return {site: load_of(mask) for site, mask in held.items()}


def _kept(sides: Sides, side: Side) -> dict[str, int]:
    counter = KeptBytes(sides.permanent())
    with sides.untouched(), counter.watching():
        results, runners = sides.run(side, counter.runner)
    found = counter.by_layer()
    del results
    for runner in runners:
        runner.close()
    return found


def _layer(
    decision: LayerDecision,
    load: BlockLoad | None,
    seconds: dict[Side, SideSeconds],
    kept: dict[Side, dict[str, int]] | None,
    site: str,
) -> LayerReport:
    nothing = LayerSeconds()
    dense, sparse = (one.by_layer().get(site, nothing) for one in seconds.values())
    settings = decision.settings if decision.sparse else None
    return LayerReport(
        name=decision.site or decision.name,
        where=decision.where,
        sparse=decision.sparse,
        reason=decision.reason,
        block=settings.block if settings is not None else 0,
        sparsity=load.sparsity if load is not None else 0.0,
        load=load,
        forward=sparse.forward,
        backward=sparse.backward,
        search=sparse.search,
        dense_forward=dense.forward,
        dense_backward=dense.backward,
        kept=kept["sparse"].get(site, 0) if kept is not None else None,
        kept_dense=kept["dense"].get(site, 0) if kept is not None else None,
    )


def _row(layer: LayerReport, training: bool) -> tuple[str, ...]:
    pairs = [(layer.dense_forward, layer.forward), (layer.dense_backward, layer.backward)]
    times = [f"{1e3 * a:.2f} -> {1e3 * b:.2f}" for a, b in pairs]
    kept = [format_bytes(size or 0) for size in (layer.kept_dense, layer.kept)]
    return (
        layer.name,
        short_place(layer.where),
        "sparse" if layer.sparse else "dense",
        str(layer.block or ""),
        f"{layer.sparsity:.1%}" if layer.sparse else "",
        f"{layer.load.busiest:.2f}x" if layer.load is not None else "",
        *(times if training else times[:1]),
        f"{layer.ratio:.2f}x",
        f"{layer.search_share:.1%}" if layer.sparse else "",
        *([" -> ".join(kept)] if training else []),
    )
