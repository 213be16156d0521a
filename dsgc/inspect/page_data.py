"""What an inspection page shows. Whoever has a graph fills this in; `render_page` draws it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dsgc.errors import DsgcError

__all__ = [
    "Kind",
    "PageData",
    "PageDataError",
    "PageEdge",
    "PageFiring",
    "PageLayer",
    "PageNode",
    "PageSource",
    "PageStage",
]

Kind = Literal["input", "output", "dense", "sparse", "selection", "norm", "parameter", "other"]


class PageDataError(DsgcError, ValueError):
    """A page's data contradicts itself, such as an edge to a node that does not exist."""


@dataclass(frozen=True)
class PageNode:
    """A node of a graph.

    Attributes:
        name: unique in its stage.
        label: what it does, in a word or two, such as "conv2d".
        kind: what it is for the sparse network.
        layer: the layer of the model that it belongs to; "" for none.
        packed: whether its value is packed.
        mask_group: the layer whose selection its value has; "" for none.
        shape: of its value; None if it is no tensor.
        dtype: of its value, such as "float32"; "" if it is no tensor.
        where: the user's source line.
        facts: anything else to show about it, by name.
    """

    name: str
    label: str
    kind: Kind
    layer: str = ""
    packed: bool = False
    mask_group: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    where: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PageEdge:
    """A tensor that goes from one node to another; `selection` if it is a mask or an index."""

    source: str
    target: str
    packed: bool = False
    selection: bool = False


@dataclass(frozen=True)
class PageStage:
    """The graph after one pass: drawn, as text, and what the pass changed as a unified diff.

    `note` says in a sentence what the pass does.
    """

    name: str
    nodes: tuple[PageNode, ...]
    edges: tuple[PageEdge, ...]
    text: str = ""
    diff: str = ""
    note: str = ""


@dataclass(frozen=True)
class PageSource:
    """A kernel's source in one language, such as TVMScript or assembly."""

    kernel: str
    language: str
    text: str


@dataclass(frozen=True)
class PageFiring:
    """A picture of how often blocks fire: `values[row][column]` in 0 to 1, NaN where unknown.

    Attributes:
        title: such as "By position", "By class of input", "Over training".
        rows: a label a row: image rows, classes, or steps; empty where numbers say enough.
        columns: a label a column: image columns or blocks.
        values: the fraction of cases in which the block (or any block) was selected.
        row_axis, column_axis: what rows and columns are, in a word, such as "class" and "block".
        note: what the values are fractions of, in a sentence.
    """

    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]
    row_axis: str = ""
    column_axis: str = ""
    note: str = ""


@dataclass(frozen=True)
class PageLayer:
    """A layer of the model.

    Attributes:
        name: of the module.
        sparse: whether it leaves neurons out.
        row: the layer's row of the report, by column.
        kernels: the sources of what it calls, by reference into `PageData.sources`.
        firings: pictures, if the run was recorded.
    """

    name: str
    sparse: bool
    row: dict[str, str]
    kernels: tuple[str, ...] = ()
    firings: tuple[PageFiring, ...] = ()


@dataclass(frozen=True)
class PageData:
    """A whole page.

    Attributes:
        title: the model's name.
        facts: totals, versions, machine, by name.
        stages: the graphs, in the order of the passes; the last one is shown first.
        layers: in the order of execution.
        sources: kernels; many layers share one.
    """

    title: str
    facts: dict[str, str]
    stages: tuple[PageStage, ...]
    layers: tuple[PageLayer, ...]
    sources: tuple[PageSource, ...] = ()
