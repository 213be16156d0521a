"""A graph to look at, as text, networkx, Graphviz or GraphML, and the record of all passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx

from dsgc.errors import MissingPackageError, UnknownGraphError
from dsgc.inspect.nodes import NodeFacts, facts_of
from dsgc.inspect.text import diff_texts, text_of
from dsgc.passes.pipeline import LOWERING, SEMANTIC

if TYPE_CHECKING:
    from dsgc.module import SparseModule

__all__ = ["GraphView", "Record", "record"]

_MEANT = {"dense": "trace", "semantic": SEMANTIC[-1].name, "lowered": LOWERING[-1].name}
_COLOURS = {
    "input": "#8ecae6", "output": "#8ecae6", "sparse": "#90be6d", "dense": "#cccccc",
    "selection": "#f9c74f", "norm": "#e0c3fc", "parameter": "#eeeeee", "other": "#ffffff",
}  # fmt: skip


@dataclass(frozen=True)
class GraphView:
    """The graph of a model after one pass.

    Attributes:
        name: of the pass; "trace" is the model as traced.
        graph_module: can be run; changing it changes nothing else.
    """

    name: str
    graph_module: fx.GraphModule

    @cached_property
    def facts(self) -> Mapping[fx.Node, NodeFacts]:
        """What is known of every node."""
        return facts_of(self.graph_module.graph)

    def text(self) -> str:
        """A line a node, under the layer and the source line it comes from."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return text_of(self.graph_module.graph)

    __str__ = text

    def diff(self, before: GraphView) -> str:
        """What changed since another graph, as a unified diff of the texts; empty for nothing."""
        return diff_texts(before.text(), self.text(), (before.name, self.name))

    def to_networkx(self) -> Any:
        """A `networkx.MultiDiGraph`: nodes carry what is known of them, edges the tensors.

        Node attributes are those of `NodeFacts`; an edge has `shape`, `dtype`, `packed`, `mask`,
        `selection` (whether it carries one) and `argument`, its place among the reader's inputs.
        """
        import networkx

        graph = networkx.MultiDiGraph(name=self.name)
        for facts in self.facts.values():
            graph.add_node(facts.name, **vars(facts))
        for node in self.graph_module.graph.nodes:
            for place, source in enumerate(node.all_input_nodes):
                made = self.facts[source]
                graph.add_edge(
                    source.name,
                    node.name,
                    argument=place,
                    shape=made.shape,
                    dtype=made.dtype,
                    packed=made.packed,
                    mask=made.mask,
                    selection=made.kind == "selection",
                )
        return graph

    def to_graphml(self, path: str | Path) -> None:
        """Write GraphML, which Gephi, yEd and others read; shapes become text there."""
        import networkx

        graph = self.to_networkx()
        elements = [data for _, data in graph.nodes(data=True)]
        for data in (*elements, *(data for _, _, data in graph.edges(data=True))):
            data["shape"] = "" if data["shape"] is None else str(list(data["shape"]))
        networkx.write_graphml(graph, Path(path), named_key_ids=True)

    def to_dot(self) -> str:
        """Graphviz source: packed edges are thick and green, selections dashed.

        Raises:
            MissingPackageError: pydot is not installed.
        """
        try:
            import pydot
        except ImportError as error:
            raise MissingPackageError(
                "to_dot() needs pydot: pip install 'dsgc[inspect]'"
            ) from error
        dot = pydot.Dot(self.name, graph_type="digraph", rankdir="TB")
        for facts in self.facts.values():
            shape = "" if facts.shape is None else f"\\n{list(facts.shape)}"
            label = f'"{facts.name}\\n{facts.label}{shape}"'
            colour = f'"{_COLOURS[facts.kind]}"'
            dot.add_node(
                pydot.Node(
                    f'"{facts.name}"', label=label, shape="box", style="filled", fillcolor=colour
                )
            )
        for node in self.graph_module.graph.nodes:
            for source in node.all_input_nodes:
                made = self.facts[source]
                looks: dict[str, Any] = {}
                if made.packed:
                    looks = {"color": '"#2d6a4f"', "penwidth": "3"}
                if made.kind == "selection":
                    looks = {"style": "dashed", "color": '"#b07d00"'}
                dot.add_edge(pydot.Edge(f'"{source.name}"', f'"{node.name}"', **looks))
        return str(dot.to_string())


@dataclass(frozen=True)
class Record:
    """The graphs of a model after every pass, in order."""

    views: tuple[GraphView, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The passes, "trace" first."""
        return tuple(view.name for view in self.views)

    def __iter__(self) -> Iterator[GraphView]:
        return iter(self.views)

    def __getitem__(self, name: str) -> GraphView:
        """The graph after the pass `name`, or "dense", "semantic" or "lowered".

        Raises:
            UnknownGraphError: there is no such pass.
        """
        wanted = _MEANT.get(name, name)
        found = [view for view in self.views if view.name == wanted]
        if not found:
            listed = ", ".join(("dense", "semantic", "lowered", *self.names))
            raise UnknownGraphError(f"there is no graph {name!r}; there are {listed}")
        return found[-1]

    def diff(self, name: str) -> str:
        """What the pass `name` changed, as a unified diff; empty for nothing or the first graph.

        Raises:
            UnknownGraphError: there is no such pass.
        """
        view = self[name]
        before = self.views[max(0, self.views.index(view) - 1)]
        return view.diff(before)

    def text(self) -> str:
        """All passes, each as what it changed."""
        parts = [f"=== {self.views[0].name}\n{self.views[0].text()}"]
        for view in self.views[1:]:
            parts.append(f"=== {view.name}\n{self.diff(view.name) or 'nothing changed'}\n")
        return "\n".join(parts)

    __str__ = text


def record(sparse: SparseModule) -> Record:
    """Compile the model's last call once more and keep the graph after every pass.

    Raises:
        ShapesUnknownError: no input was seen yet.
        TraceError: the model is not one graph, because its own code cannot be traced.
    """
    program, namespace = sparse.last_program()
    views: list[GraphView] = []

    def keep(name: str, gm: fx.GraphModule) -> None:
        graph = fx.Graph()
        kept: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(gm.graph, kept)
        graph.output(result)
        views.append(GraphView(name, fx.GraphModule(gm, graph, class_name=type(gm).__name__)))

    sparse._engine.again(program, keep).lowered(namespace or "dsgc")
    return Record(tuple(views))
