"""What people ask of a graph: where time and sparsity go, who shares masks, what lives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from dsgc.inspect.nodes import NodeFacts
from dsgc.inspect.view import GraphView
from dsgc.watch import label_of

__all__ = [
    "Lifetime",
    "Loss",
    "Memory",
    "critical_path",
    "liveness",
    "lost_sparsity",
    "mask_groups",
]

_BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int8": 1,
    "uint8": 1, "bool": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Lifetime:
    """When a value is needed in a forward pass.

    Attributes:
        node: that makes it.
        first, last: the numbers of the nodes that make it and read it last.
        bytes: what it takes; expected ones if it is packed.
    """

    node: str
    first: int
    last: int
    bytes: int


@dataclass(frozen=True)
class Memory:
    """What a forward pass without gradients holds at once.

    Attributes:
        lifetimes: of all values that are no parameters.
        peak: the most bytes at once.
        at: the node that runs then.
    """

    lifetimes: tuple[Lifetime, ...]
    peak: int
    at: str


@dataclass(frozen=True)
class Loss:
    """A place where fewer neurons stay left out.

    Attributes:
        node, layer, where: the place.
        what: what happens there, in words.
        before, after: densities.
    """

    node: str
    layer: str
    where: str
    what: str
    before: float
    after: float


def critical_path(view: GraphView, seconds: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """The chain of nodes that takes longest, with the seconds of each.

    Args:
        view: a graph.
        seconds: by node, such as `Report.seconds_of` of the lowered graph; others take none.
    """
    best: dict[fx.Node, float] = {}
    before: dict[fx.Node, fx.Node | None] = {}
    for node in view.graph_module.graph.nodes:
        longest = max(node.all_input_nodes, key=lambda one: best[one], default=None)
        before[node] = longest
        best[node] = (best[longest] if longest is not None else 0.0) + seconds.get(node.name, 0.0)
    path: list[tuple[str, float]] = []
    node = max(best, key=lambda one: best[one], default=None)
    while node is not None:
        path.append((node.name, seconds.get(node.name, 0.0)))
        node = before[node]
    return tuple(reversed(path))


def mask_groups(view: GraphView) -> dict[str, tuple[str, ...]]:
    """For every selection the nodes whose values have it, by the node that made it."""
    found: dict[str, list[str]] = {}
    for facts in view.facts.values():
        if facts.mask and facts.kind != "selection":
            found.setdefault(facts.mask, []).append(facts.name)
    return {mask: tuple(names) for mask, names in found.items()}


def liveness(view: GraphView) -> Memory:
    """How long every value is needed, and the most memory that is in use at once.

    For a forward pass without gradients, in which a value goes when it was read last. Packed
    values count with their expected density; views and tuples count once, where they are made.
    """
    order = {node: i for i, node in enumerate(view.graph_module.graph.nodes)}
    found = []
    for node, first in order.items():
        size = _bytes(view.facts[node])
        if size:
            last = max((_last_use(user, order) for user in node.users), default=first)
            found.append(Lifetime(node.name, first, last, size))
    peak, at = 0, ""
    for node, now in order.items():
        held = sum(one.bytes for one in found if one.first <= now <= one.last)
        if held > peak:
            peak, at = held, node.name
    return Memory(tuple(found), peak, at)


def _last_use(user: fx.Node, order: Mapping[fx.Node, int]) -> int:
    """When a reader is done: an item of a tuple is the same memory as the tuple's."""
    if label_of(user) == "getitem":
        return max((order[one] for one in user.users), default=order[user])
    return order[user]


def _bytes(facts: NodeFacts) -> int:
    if facts.kind == "parameter" or facts.shape is None:
        return 0
    whole = math.prod(facts.shape) * _BYTES.get(facts.dtype, 4)
    return round(whole * facts.density) if facts.packed else whole


def lost_sparsity(view: GraphView) -> tuple[Loss, ...]:
    """Where values become denser: unpacked, or brought together by a pooling window."""
    found = []
    for node, facts in view.facts.items():
        sources = [view.facts[one] for one in node.all_input_nodes]
        masked = [one for one in sources if one.mask and one.kind not in ("selection", "parameter")]
        if not masked or facts.kind in ("selection", "sparse"):
            continue
        before = min(one.density for one in masked)
        made = [view.facts[one] for one in node.users if label_of(one) == "getitem"]
        after = min([facts.density, *(one.density for one in made if one.mask)])
        what = _what(facts, bool(facts.mask) or any(one.mask for one in made))
        if what and after > before:
            found.append(Loss(facts.name, facts.layer, facts.where, what, before, after))
    return tuple(found)


def _what(facts: NodeFacts, still_masked: bool) -> str:
    """What a node does to the sparsity of what it reads; "" if it keeps it."""
    if facts.kind == "output":
        return "the result of the model is dense"
    if "pool" in facts.label.lower():
        return "a pooling window brings together the selections of its positions"
    if facts.label in ("unpack", "activate", "residual_add"):
        return "it is unpacked: what reads it works on dense values"
    if facts.kind == "dense":
        return "a dense layer reads it"
    if still_masked or facts.label in ("getitem", "PackedBatchNorm", "Recompute"):
        return ""
    return "no selection goes through this operation"
