"""The graphs of a compiled model, dense and sparse, to be run node by node in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dsgc.engine import Engine
from dsgc.measure import channels_last
from dsgc.module import SparseModule
from dsgc.program import Program
from dsgc.watch import Watched

__all__ = ["Side", "Sides"]

Side = Literal["dense", "sparse", "semantic", "exposed"]
MakeRunner = Callable[[fx.GraphModule], Watched]


class Sides:
    """Runs the parts of a compiled model on the graphs of one side; see `untouched`.

    The dense side is what a user would run instead: a copy of the dense model with weights and
    maps in channels-last order.

    Args:
        sparse: the compiled model.
        args, kwargs: what it is called with.
    """

    def __init__(self, sparse: SparseModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.sparse = sparse
        self._args, self._kwargs = args, kwargs
        self._engine = sparse._engine
        self._made: dict[tuple[Side, Program], fx.GraphModule] = {}

    @cached_property
    def _copy(self) -> nn.Module:
        return channels_last(copy.deepcopy(self.sparse._dense[0]))

    @cached_property
    def _other(self) -> Engine:
        """Traces the copy, for the decisions that hold."""
        sparse = self.sparse
        decisions = self._engine.decisions
        return Engine(self._copy, sparse.config, sparse._bank, decisions, {}, "reference")

    def parameters(self, side: Side) -> list[Tensor]:
        """The parameters that a side's gradients belong to."""
        owner: nn.Module = self._copy if side == "dense" else self.sparse
        return [p for p in owner.parameters() if p.requires_grad]

    def permanent(self) -> list[Tensor]:
        """Parameters and buffers of both sides."""
        found: list[Tensor] = []
        for owner in (self._copy, self.sparse):
            found += [*owner.parameters(), *owner.buffers()]
        return found

    def run(self, side: Side, make: MakeRunner) -> tuple[list[Tensor], list[Watched]]:
        """Run one side forward; the floating-point results, and the runners of all parts.

        Args:
            side: "dense"; "sparse", as the module itself runs; "semantic", on dense tensors and
                masks; "exposed", as "sparse" with the dense form of every value made as well.
            make: makes a runner for the graph of a part.
        """
        runners: list[Watched] = []

        def watch(program: Program, namespace: str | None, tensors: list[Tensor]) -> Any:
            graph = self._graph(side, program, namespace)
            if side == "dense":
                tensors = [_channels_last(tensor) for tensor in tensors]
            runners.append(make(graph))
            return runners[-1].run(*tensors)

        self._engine.watch = watch
        try:
            result = self._engine.call_part("", self._args, self._kwargs)
        finally:
            self._engine.watch = None
        leaves = pytree.tree_leaves(result)
        floats = [x for x in leaves if isinstance(x, Tensor) and x.is_floating_point()]
        return floats, runners

    def _graph(self, side: Side, program: Program, namespace: str | None) -> fx.GraphModule:
        if side == "semantic" or (side == "sparse" and namespace is None):
            return program.semantic
        if side == "sparse":
            return program.lowered(namespace or "dsgc")
        key = (side, program)
        if key not in self._made:
            made = self._other.again(program).dense if side == "dense" else None
            self._made[key] = made or program.exposed(namespace or "dsgc")
        return self._made[key]

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Within, running statistics and random numbers move; afterwards they are as before.

        Whoever runs backward does it within as well: it reads the statistics.
        """
        buffers = [(b, b.detach().clone()) for b in self.sparse.buffers()]
        last = self._engine.last
        try:
            with torch.random.fork_rng(devices=[]):
                yield
        finally:
            self._engine.last = last
            with torch.no_grad():
                for buffer, before in buffers:
                    if buffer.shape == before.shape and not torch.equal(buffer, before):
                        buffer.copy_(before)


def _channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return tensor
    return tensor.contiguous(memory_format=torch.channels_last)
