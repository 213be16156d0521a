"""A page's data as JSON: what many stages share is kept once, and long parts are compressed."""

from __future__ import annotations

import base64
import json
import math
import unicodedata
import zlib
from typing import Any

from dsgc.inspect.layout import BOX_HEIGHT, CycleError, Layout, Line, Style, lay_out
from dsgc.inspect.page_data import (
    PageData,
    PageDataError,
    PageFiring,
    PageLayer,
    PageNode,
    PageStage,
)

__all__ = ["payload"]

_STYLES = {"dense": 0, "packed": 1, "selection": 2}
_COMPRESS_FROM = 1500
# Characters that a box shows of a text before it cuts it; the script reads them from the payload.
_LIMITS = {"label": 24, "name": 28, "shape": 22}


def payload(data: PageData) -> str:
    """The JSON text of `data`, safe inside a <script> element.

    Raises:
        PageDataError: the data contradict themselves.
    """
    pool = _Pool()
    stages = [_stage(stage, pool) for stage in data.stages]
    content = {
        "title": data.title,
        "facts": list(data.facts.items()),
        "stages": stages,
        "graphs": pool.graphs,
        "layouts": pool.layouts,
        "nodes": _part(pool.nodes),
        "groups": _groups(data),
        "sources": [
            {"kernel": one.kernel, "language": one.language, "text": pool.text(one.text)}
            for one in data.sources
        ],
        "layers": _layers(data),
        "texts": pool.texts,
        "limits": _LIMITS,
        "boxHeight": BOX_HEIGHT,
    }
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


class _Pool:
    """What stages share, each different part once."""

    def __init__(self) -> None:
        self.nodes: list[list[Any]] = []
        self.graphs: list[dict[str, Any]] = []
        self.layouts: list[Any] = []
        self.texts: list[Any] = []
        self._places: dict[tuple[str, Any], int] = {}

    def text(self, text: str) -> int:
        """The number of a text; -1 for none."""
        return self._place("text", text, self.texts, lambda: _part(text)) if text else -1

    def node(self, node: PageNode) -> int:
        record = [
            node.name,
            node.label,
            node.kind,
            node.layer,
            int(node.packed),
            node.mask_group,
            None if node.shape is None else list(node.shape),
            node.dtype,
            node.where,
            list(node.facts.items()),
        ]
        return self._place("node", json.dumps(record), self.nodes, lambda: record)

    def layout(self, widths: list[int], lines: list[Line], inputs: frozenset[int]) -> int:
        key = (tuple(widths), tuple(lines), inputs)
        return self._place(
            "layout",
            key,
            self.layouts,
            lambda: _part(_layout(widths, lay_out(widths, lines, inputs))),
        )

    def graph(self, nodes: list[int], layout: int) -> int:
        key = (tuple(nodes), layout)
        return self._place(
            "graph", key, self.graphs, lambda: {"nodes": _part(nodes), "layout": layout}
        )

    def _place(self, kind: str, key: Any, kept: list[Any], make: Any) -> int:
        place = self._places.get((kind, key))
        if place is None:
            kept.append(make())
            place = self._places[kind, key] = len(kept) - 1
        return place


def _part(value: Any) -> Any:
    """A value as JSON can hold it: {"plain": value}, or {"deflate": text} if it is long."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    if len(text) < _COMPRESS_FROM:
        return {"plain": value}
    return {"deflate": base64.b64encode(zlib.compress(text.encode("ascii"), 9)).decode("ascii")}


def _stage(stage: PageStage, pool: _Pool) -> dict[str, Any]:
    number: dict[str, int] = {}
    for node in stage.nodes:
        if node.name in number:
            raise PageDataError(
                f"stage {stage.name!r} has two nodes called {node.name!r}; names must differ"
            )
        number[node.name] = len(number)
    lines = []
    for edge in stage.edges:
        for end in (edge.source, edge.target):
            if end not in number:
                raise PageDataError(
                    f"in stage {stage.name!r} an edge from {edge.source!r} to {edge.target!r} "
                    f"needs a node {end!r}, which the stage does not have"
                )
        style: Style = "selection" if edge.selection else "packed" if edge.packed else "dense"
        lines.append(Line(number[edge.source], number[edge.target], style))
    inputs = frozenset(number[node.name] for node in stage.nodes if node.kind == "input")
    try:
        layout = pool.layout([_box_width(node) for node in stage.nodes], lines, inputs)
    except CycleError as error:
        raise PageDataError(
            f"the graph of stage {stage.name!r} has a cycle at or before "
            f"{stage.nodes[error.node].name!r}; only graphs without cycles can be drawn"
        ) from error
    return {
        "name": stage.name,
        "note": stage.note,
        "graph": pool.graph([pool.node(node) for node in stage.nodes], layout),
        "text": pool.text(stage.text),
        "diff": pool.text(stage.diff),
    }


def _layout(widths: list[int], layout: Layout) -> dict[str, Any]:
    return {
        "width": layout.width,
        "height": layout.height,
        "widths": widths,
        "x": layout.x,
        "row": layout.row,
        "tops": layout.tops,
        "wires": [
            [
                wire.source,
                _STYLES[wire.style],
                wire.start,
                [number for bend in wire.bends for number in bend],
                [number for end in wire.ends for number in end],
            ]
            for wire in layout.wires
        ],
    }


def _box_width(node: PageNode) -> int:
    """How wide a node's box must be for what it shows, in whole steps, so that boxes line up."""
    shape = "" if node.shape is None else "x".join(map(str, node.shape)) or "scalar"
    first = 8.6 * _cells(node.label, "label") + (14 + 6.3 * _cells(shape, "shape") if shape else 0)
    second = 6.7 * _cells(node.name, "name")
    return max(96, 12 * math.ceil((max(first, second) + 26) / 12))


def _cells(text: str, limit: str) -> int:
    """How many columns of a fixed-width font the shown part of a text takes."""
    return sum(
        2 if unicodedata.east_asian_width(character) in "WF" else 1
        for character in text[: _LIMITS[limit]]
    )


def _groups(data: PageData) -> list[str]:
    """Mask groups in the order of their layers, so that every stage gives them the same colour."""
    used = {node.mask_group: None for stage in data.stages for node in stage.nodes}
    used.pop("", None)
    known = [layer.name for layer in data.layers if layer.name in used]
    return list(dict.fromkeys([*known, *used]))


def _layers(data: PageData) -> list[dict[str, Any]]:
    sources: dict[str, list[int]] = {}
    for place, source in enumerate(data.sources):
        sources.setdefault(source.kernel, []).append(place)
    layers = []
    names = set()
    for layer in data.layers:
        if layer.name in names:
            raise PageDataError(f"two layers are called {layer.name!r}; names must differ")
        names.add(layer.name)
        for kernel in layer.kernels:
            if kernel not in sources:
                raise PageDataError(
                    f"layer {layer.name!r} calls kernel {kernel!r}, of which there is no source"
                )
        layers.append(
            {
                "name": layer.name,
                "sparse": layer.sparse,
                "row": list(layer.row.items()),
                "kernels": [[kernel, sources[kernel]] for kernel in dict.fromkeys(layer.kernels)],
                "firings": [_firing(firing, layer) for firing in layer.firings],
            }
        )
    return layers


def _firing(firing: PageFiring, layer: PageLayer) -> dict[str, Any]:
    about = f"the picture {firing.title!r} of layer {layer.name!r}"
    width = len(firing.values[0]) if firing.values else 0
    for labels, count, what in (
        (firing.rows, len(firing.values), "rows"),
        (firing.columns, width, "columns"),
    ):
        if labels and len(labels) != count:
            raise PageDataError(f"{about} has {count} {what} and {len(labels)} labels for them")
    for row in firing.values:
        if len(row) != width:
            raise PageDataError(f"{about} has rows of {width} and of {len(row)} values")
    return {
        "title": firing.title,
        "note": firing.note,
        "rows": firing.rows,
        "columns": firing.columns,
        "rowAxis": firing.row_axis,
        "columnAxis": firing.column_axis,
        "width": width,
        "values": _part([_fraction(value, about) for row in firing.values for value in row]),
    }


def _fraction(value: float, about: str) -> float | None:
    value = float(value)
    if math.isnan(value):
        return None
    if not 0.0 <= value <= 1.0:
        raise PageDataError(f"{about} has the value {value}; fractions are between 0 and 1")
    return round(value, 4)
