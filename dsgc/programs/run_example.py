"""Run a lowered graph on the example batch, and keep the shapes of what every node makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dsgc.passes.propagate_shapes import ShapeRecorder

__all__ = ["run_example"]


class _Keeper(ShapeRecorder):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.made: dict[fx.Node, Any] = {}
        self.live: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        found = self.made[n] = super().run_node(n)
        if n.op == "placeholder" or any(read in self.live for read in n.all_input_nodes):
            self.live.add(n)
            self.made[n] = pytree.tree_map_only(Tensor, _shape_of, found)
        return found


def _shape_of(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def run_example(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> dict[fx.Node, Any]:
    """What every node of `graph` makes of `inputs`; shapes are noted in `node.meta`.

    Tensors that depend on an input are without numbers, and take no memory.
    """
    keeper = _Keeper(graph)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        keeper.run(*inputs)
    return keeper.made
