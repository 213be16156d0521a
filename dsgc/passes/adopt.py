"""Modules and tensors of one graph module, made part of another."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

__all__ = ["adopt"]


def adopt(graph: fx.GraphModule, source: fx.GraphModule, target: str) -> None:
    """Make `target` of `source` reachable in `graph`, unless there is something by that name."""
    owner, _, name = target.rpartition(".")
    try:
        holder = graph.get_submodule(owner)
        if hasattr(holder, name):
            return
    except AttributeError:
        pass
    value: Any = source.get_submodule(owner)
    found = getattr(value, name)
    if isinstance(found, nn.Module):
        graph.add_submodule(target, found)
    elif owner:
        graph.add_submodule(owner, value)
    else:
        setattr(graph, name, found)
