"""Run a lowered graph on the example batch, and keep what every node makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from dsgc.passes.propagate_shapes import ShapeRecorder

__all__ = ["run_example"]


class _Keeper(ShapeRecorder):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.made: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = self.made[n] = super().run_node(n)
        return found


def run_example(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """What every node of `graph` makes of `inputs`; shapes are noted in `node.meta`."""
    keeper = _Keeper(graph)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        keeper.run(*inputs)
    return keeper.made
