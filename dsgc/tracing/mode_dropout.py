"""Whether two graphs of a module do the same, and dropout that follows its module's mode."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

__all__ = ["ModeDropout", "follow_owner", "mode_dropouts", "signature"]


def signature(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """What a graph does, comparable: operations, targets and arguments without node names."""
    place = {node: i for i, node in enumerate(graph.nodes)}

    def plain(value: Any) -> Any:
        return fx.node.map_arg(value, lambda node: f"%{place[node]}")

    return [
        (node.op, str(node.target), repr(plain(node.args)), repr(plain(node.kwargs)))
        for node in graph.nodes
    ]


_DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
)


def _dropout_arguments(node: fx.Node) -> dict[str, Any] | None:
    if node.op != "call_function" or node.target not in _DROPOUTS:
        return None
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def mode_dropouts(graph: fx.Graph, other: fx.Graph) -> list[fx.Node] | None:
    """The functional dropouts in which alone two graphs differ; None if they differ otherwise."""
    if len(graph.nodes) != len(other.nodes):
        return None
    found = []
    for i, (mine, theirs) in enumerate(zip(signature(graph), signature(other), strict=True)):
        if mine == theirs:
            continue
        node, twin = list(graph.nodes)[i], list(other.nodes)[i]
        here, there = _dropout_arguments(node), _dropout_arguments(twin)
        if here is None or there is None or node.target is not twin.target:
            return None
        here.pop("training"), there.pop("training")
        if {k: str(v) for k, v in here.items()} != {k: str(v) for k, v in there.items()}:
            return None
        found.append(node)
    return found


class ModeDropout(nn.Module):
    """`F.dropout(x, p, training=owner.training)` of a forward, following its owner's mode."""

    def __init__(self, owner: nn.Module, function: Callable[..., torch.Tensor], p: float) -> None:
        super().__init__()
        self._owner = (owner,)  # a tuple, so that the owner is not registered a second time
        self.function = function
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Drop entries while the owner is in training mode."""
        return self.function(x, self.p, self._owner[0].training)


def follow_owner(gm: fx.GraphModule, node: fx.Node, model: nn.Module, path: str) -> None:
    arguments = _dropout_arguments(node)
    if arguments is None:
        return
    stack = node.meta.get("nn_module_stack") or {path: None}
    owner = model.get_submodule(next(reversed(stack)).split("@")[0])
    target = f"dsgc_dropout.{node.name}"
    function: Any = node.target
    gm.add_submodule(target, ModeDropout(owner, function, arguments["p"]))
    node.op, node.target = "call_module", target
    node.args, node.kwargs = (arguments["input"],), {}
