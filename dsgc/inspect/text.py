"""A graph as text for people: a line a node, under the layer and the source line it comes from."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from torch import fx

from dsgc.inspect.nodes import NodeFacts, facts_of

__all__ = ["diff_texts", "text_of"]


def text_of(graph: fx.Graph) -> str:
    """Every node as `name: dtype[shape] = operation(arguments)`, with what is packed noted."""
    lines: list[str] = []
    heading: tuple[str, str] | None = None
    facts = facts_of(graph)
    for node in graph.nodes:
        here = (facts[node].layer, facts[node].where)
        if facts[node].where and here != heading and node.op != "output":
            heading = here
            lines += ["", f"# {here[0] or 'before the first layer'}  {here[1]}"]
        lines.append(_line(node, facts[node]))
    return "\n".join(lines).strip() + "\n"


def _line(node: fx.Node, facts: NodeFacts) -> str:
    arguments = ", ".join(
        [_value(one) for one in node.args]
        + [f"{name}={_value(one)}" for name, one in node.kwargs.items()]
    )
    if node.op == "output":
        return f"return {arguments}"
    if node.op == "placeholder":
        call = "input"
    elif node.op == "get_attr":
        call = str(node.target)
    elif node.op == "call_module":
        call = f"{facts.label} {node.target}({arguments})"
    else:
        call = f"{facts.label}({arguments})"
    kind = ""
    if facts.shape is not None:
        kind = f": {facts.dtype}[{', '.join(map(str, facts.shape))}]"
    notes = []
    if facts.mask and facts.kind != "selection":
        state = "packed" if facts.packed else "masked"
        notes.append(f"{state} by {facts.mask}, density {facts.density:.0%}")
    decision = node.meta.get("decision")
    if decision is not None and decision.reason and not facts.mask:
        notes.append(f"{'sparse' if decision.sparse else 'dense'}: {decision.reason}")
    return f"{node.name}{kind} = {call}" + (f"  # {'; '.join(notes)}" if notes else "")


def _value(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if isinstance(value, (tuple, list)):
        inside = ", ".join(_value(one) for one in value)
        return f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {_value(v)}" for k, v in value.items()) + "}"
    return repr(value)


def diff_texts(before: str, after: str, names: Iterable[str], context: int = 2) -> str:
    """A unified diff; empty if nothing changed."""
    first, second = names
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), first, second, lineterm="", n=context
    )
    return "\n".join(lines)
