"""Fills an inspection page from an artifact: the calls of its program, and what flows between."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dsgc.config import BLOCKS
from dsgc.inspect.page_data import (
    Kind,
    PageData,
    PageEdge,
    PageLayer,
    PageNode,
    PageStage,
)
from dsgc.inspect.page_sources import sources_of
from dsgc.measure import format_count
from dsgc_runtime.archive import Archive
from dsgc_runtime.manifest import Call, Manifest, Read, View, views_of

__all__ = ["page_of_artifact"]

_SEARCH = ("rank_", "round_", "project_", "search", "scores", "list", "row_pointers", "equal_rows")


def page_of_artifact(archive: Archive, place: Path) -> PageData:
    """Everything an inspection page shows about an artifact; nothing of it is run.

    Sources are those that this version of dsgc generates for this machine.
    """
    manifest = archive.manifest
    kernels: dict[str, dict[str, None]] = {}
    for step in manifest.program:
        if isinstance(step, Call):
            kernels.setdefault(step.layer, {})[step.kernel] = None
    sources = sources_of(name for names in kernels.values() for name in names)
    known = {source.kernel for source in sources}
    layers = tuple(
        PageLayer(
            layer.name,
            layer.sparse,
            {
                "sparsity": f"{layer.sparsity:.1%}" if layer.sparse else "",
                "dense multiply-adds": format_count(layer.multiply_adds),
                "why": layer.reason,
            },
            tuple(name for name in kernels.get(layer.name, ()) if name in known),
        )
        for layer in manifest.layers
    )
    program = PageStage("program", *_drawn(manifest), note="The kernel calls of the artifact.")
    lowered = PageStage("graph", (), (), archive.graph, note="The lowered graph, as text only.")
    return PageData(
        title=place.name,
        facts={
            "written by dsgc": manifest.dsgc,
            "target": f"{manifest.target} ({manifest.machine})",
            "batch": "any" if manifest.dynamic else str(manifest.example),
            "kernel calls": str(len(manifest.program)),
            "bytes": format_count(place.stat().st_size),
        },
        stages=(lowered, program),
        layers=layers,
        sources=sources,
    )


def _drawn(manifest: Manifest) -> tuple[tuple[PageNode, ...], tuple[PageEdge, ...]]:
    """A node a call; an edge from the call that wrote a buffer last to all that read it.

    A call writes what nobody wrote before it, and the last of its buffers.
    """
    sparse = {layer.name for layer in manifest.layers if layer.sparse}
    maker: dict[int, str] = {}
    values: set[str] = set()  # calls that make no part of a selection
    nodes: list[PageNode] = []
    edges: dict[PageEdge, None] = {}
    for port in manifest.inputs:
        nodes.append(PageNode(port.name, "input", "input", shape=None, dtype=port.view.dtype))
        maker[_number(port.view)] = port.name
    for number, step in enumerate(manifest.program):
        name = f"{number:03d}"
        nodes.append(_node(name, step, sparse))
        for view in views_of(step):
            if isinstance(view.storage, str):
                continue
            source = maker.setdefault(view.storage, name)
            if source != name:
                packed = source in values and step.layer in sparse and _is_packed(view)
                edges[PageEdge(source, name, packed, view.dtype != "float32")] = None
        touched = [v.storage for v in views_of(step) if isinstance(v.storage, int)]
        if touched and isinstance(step, Call):
            maker[touched[-1]] = name
        if nodes[-1].kind != "selection":
            values.add(name)
    for port in manifest.outputs:
        nodes.append(PageNode(port.name, "output", "output", dtype=port.view.dtype))
        edges[PageEdge(maker[_number(port.view)], port.name)] = None
    return tuple(nodes), tuple(edges)


def _node(name: str, step: Call | Read, sparse: set[str]) -> PageNode:
    label = step.kernel if isinstance(step, Call) else f"read {step.name}"
    facts = dict(_arguments(step))
    kind: Kind = "other"
    if isinstance(step, Read) or any(part in label for part in _SEARCH):
        kind = "selection"
    elif "conv" in label or "rows_dense" in label or "stem" in label:
        kind = "sparse" if step.layer in sparse else "dense"
    return PageNode(name, label, kind, step.layer, facts=facts)


def _arguments(step: Call | Read) -> Iterator[tuple[str, str]]:
    for i, view in enumerate(views_of(step)):
        shape = ", ".join(_text(extent) for extent in view.shape)
        where = f"buffer {view.storage}" if isinstance(view.storage, int) else view.storage
        yield f"tensor {i}", f"{where}: {view.dtype}[{shape}]"


def _text(size: object) -> str:
    if isinstance(size, tuple):
        return f"({_text(size[1])} {size[0]} {_text(size[2])})"
    return str(size)


def _is_packed(view: View) -> bool:
    return view.dtype == "float32" and len(view.shape) == 2 and view.shape[1] in BLOCKS


def _number(view: View) -> int:
    return int(view.storage)
