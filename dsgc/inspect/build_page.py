"""Fills an inspection page from a compiled model."""

from __future__ import annotations

import torch
from torch import fx

from dsgc.inspect.nodes import NodeFacts
from dsgc.inspect.page_data import (
    PageData,
    PageEdge,
    PageFiring,
    PageLayer,
    PageNode,
    PageStage,
)
from dsgc.inspect.page_sources import sources_of
from dsgc.inspect.tables import LayerTable
from dsgc.inspect.view import GraphView, Record
from dsgc.measure import format_count
from dsgc.module import SparseModule
from dsgc.passes.mark_layers import belongs_to
from dsgc.watch import Watched

__all__ = ["page_of"]


def page_of(
    sparse: SparseModule,
    table: LayerTable,
    firings: dict[str, tuple[PageFiring, ...]] | None = None,
) -> PageData:
    """Everything an inspection page shows about the model's last call.

    Args:
        sparse: a compiled model that has seen an input.
        table: rows of its layers: of `dsgc.explain` or of `sparse.report()`.
        firings: pictures by layer, see `FiringRecorder`.

    Raises:
        ShapesUnknownError: no input was seen yet.
        TraceError: the model is not one graph, because its own code cannot be traced.
    """
    record = sparse.record()
    kernels = _kernels(sparse)
    rows = {row["layer"]: row for row in table.named_rows()}
    layers = tuple(
        PageLayer(
            site,
            decision.sparse,
            {**_without_name(rows.get(site, {})), "why": decision.reason},
            kernels.get(site, ()),
            (firings or {}).get(site, ()),
        )
        for site, decision in sparse.decisions.items()
    )
    return PageData(
        title=type(sparse._dense[0]).__name__,
        facts=_facts(sparse, table),
        stages=_stages(record),
        layers=layers,
        sources=sources_of(name for names in kernels.values() for name in names),
    )


def _without_name(row: dict[str, str]) -> dict[str, str]:
    """A row without what the page shows anyway."""
    return {name: text for name, text in row.items() if name not in ("layer", "decision")}


def _facts(sparse: SparseModule, table: LayerTable) -> dict[str, str]:
    totals = {
        f"total {column.name}": total
        for column, total in zip(table.columns, table.totals, strict=False)
        if column.number and total
    }
    return {
        "sparsity asked": f"{sparse.config.sparsity:g}",
        **totals,
        "backend": sparse.backend,
        "dsgc": _version(),
        "torch": str(torch.__version__),
    }


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("dsgc")
    except metadata.PackageNotFoundError:
        return "not installed"


def _stages(record: Record) -> tuple[PageStage, ...]:
    return tuple(
        PageStage(
            view.name,
            _nodes(view),
            _edges(view),
            view.text(),
            record.diff(view.name),
            _note(view.name),
        )
        for view in record
    )


def _note(name: str) -> str:
    """What a pass does: the first line of its file."""
    import importlib

    if name == "trace":
        return "The model as torch.fx traced it."
    module = importlib.import_module(f"dsgc.passes.{name}")
    return (module.__doc__ or "").partition("\n")[0]


def _nodes(view: GraphView) -> tuple[PageNode, ...]:
    layers = {facts.name: facts.layer for facts in view.facts.values()}
    return tuple(_node(facts, layers.get(facts.mask, "")) for facts in view.facts.values())


def _node(facts: NodeFacts, mask_group: str) -> PageNode:
    said: dict[str, str] = {}
    if facts.mask:
        said["selection"] = facts.mask
        said["density"] = f"{facts.density:.1%}"
    if facts.multiply_adds:
        said["multiply-adds of a sample"] = format_count(facts.multiply_adds)
    return PageNode(
        facts.name,
        facts.label,
        facts.kind,
        facts.layer,
        facts.packed,
        mask_group,
        facts.shape,
        facts.dtype,
        facts.where,
        said,
    )


def _edges(view: GraphView) -> tuple[PageEdge, ...]:
    return tuple(
        PageEdge(
            source.name,
            node.name,
            view.facts[source].packed,
            view.facts[source].kind == "selection",
        )
        for node in view.graph_module.graph.nodes
        for source in node.all_input_nodes
    )


def _kernels(sparse: SparseModule) -> dict[str, tuple[str, ...]]:
    """The generated kernels that every layer calls, forward and backward, by running it once."""
    program, namespace = sparse.last_program()
    if namespace != "dsgc_cpu":
        return {}
    from dsgc.codegen.sources import KernelLog

    found: dict[str, dict[str, None]] = {}
    begun: list[tuple[str, int]] = []

    def begin(node: fx.Node, direction: str) -> None:
        begun.append((belongs_to(node), len(log.calls)))

    def end(node: fx.Node, direction: str) -> None:
        layer, since = begun.pop()
        called = [kernel for _, kernel in log.calls[since:]]
        found.setdefault(layer, {}).update(dict.fromkeys(called))

    inputs = [torch.zeros(x.shape, dtype=x.dtype) for x in program.example]
    with KernelLog() as log, sparse.in_eval_mode():
        runner = Watched(program.lowered(namespace), begin, end)
        result = runner.run(*inputs)
        outputs = result if isinstance(result, (tuple, list)) else [result]
        wanted = [x for x in outputs if isinstance(x, torch.Tensor) and x.requires_grad]
        if wanted:
            parameters = [p for p in sparse.parameters() if p.requires_grad]
            ones = [torch.ones_like(x) for x in wanted]
            torch.autograd.grad(wanted, parameters, ones, allow_unused=True)
        runner.close()
    return {layer: tuple(names) for layer, names in found.items()}
