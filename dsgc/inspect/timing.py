"""Seconds that every layer takes, forward and backward, of the dense and the sparse side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import fx

from dsgc.inspect.sides import Side, Sides
from dsgc.passes.mark_layers import belongs_to
from dsgc.passes.patterns import module_of
from dsgc.select import PackedSelection, Selector
from dsgc.watch import Direction, Watched

__all__ = ["LayerSeconds", "NodeSeconds", "Progress", "SideSeconds", "time_sides"]

Progress = Callable[[int, int], None]


@dataclass
class NodeSeconds:
    """Median seconds of a node, forward (with its search, if it is one) and backward."""

    name: str
    layer: str
    forward: float
    backward: float
    search: bool


@dataclass
class LayerSeconds:
    """Medians of what a layer and what follows it up to the next one take, in seconds.

    `search` is part of `forward`.
    """

    forward: float = 0.0
    backward: float = 0.0
    search: float = 0.0


@dataclass
class SideSeconds:
    """What was measured of one side, node by node and as a whole."""

    nodes: dict[fx.Node, NodeSeconds] = field(default_factory=dict)
    forward: float = 0.0
    backward: float = 0.0

    def by_layer(self) -> dict[str, LayerSeconds]:
        """Nodes added up."""
        found: dict[str, LayerSeconds] = {}
        for node in self.nodes.values():
            layer = found.setdefault(node.layer, LayerSeconds())
            layer.forward += node.forward
            layer.backward += node.backward
            layer.search += node.forward if node.search else 0.0
        return found


class _Clock:
    """Adds up what one run spends in every node.

    `wait` returns when the device has done all that it was given.
    """

    def __init__(self, wait: Callable[[], object]) -> None:
        self._wait = wait
        self.spent: dict[tuple[fx.Node, Direction], float] = {}
        self._begun: dict[tuple[fx.Node, Direction], float] = {}

    def runner(self, gm: fx.GraphModule) -> Watched:
        return Watched(gm, self._begin, self._end)

    def _begin(self, node: fx.Node, direction: Direction) -> None:
        self._wait()
        self._begun[node, direction] = time.perf_counter()

    def _end(self, node: fx.Node, direction: Direction) -> None:
        self._wait()
        key = (node, direction)
        since = time.perf_counter() - self._begun[key]
        self.spent[key] = self.spent.get(key, 0.0) + since


def time_sides(
    sides: Sides, *, training: bool, rounds: int, report: Progress | None = None
) -> dict[Side, SideSeconds]:
    """Run "dense" and "sparse" in turn and take the medians, node by node.

    Args:
        sides: what to run.
        training: forward and backward; else forward only, without gradients.
        rounds: counted runs of each side; two more are made before.
        report: gets the rounds done and those to do.
    """
    on_gpu = any(p.device.type == "cuda" for p in sides.sparse.parameters())
    wait: Callable[[], object] = torch.cuda.synchronize if on_gpu else _nothing_to_wait_for
    clocks: dict[Side, list[_Clock]] = {"dense": [], "sparse": []}
    whole: dict[Side, list[tuple[float, float]]] = {"dense": [], "sparse": []}
    for turn in range(-2, rounds):
        names = list(clocks) if turn % 2 == 0 else list(clocks)[::-1]
        for side in names:
            clock = _Clock(wait)
            spent = _once(sides, side, clock, training)
            if turn >= 0:
                clocks[side].append(clock)
                whole[side].append(spent)
        if report is not None:
            report(turn + 3, rounds + 2)
    return {side: _medians(clocks[side], whole[side]) for side in clocks}


def _nothing_to_wait_for() -> None:
    return None


def _once(sides: Sides, side: Side, clock: _Clock, training: bool) -> tuple[float, float]:
    with sides.untouched():
        begun = time.perf_counter()
        with torch.set_grad_enabled(training):
            results, runners = sides.run(side, clock.runner)
        middle = time.perf_counter()
        results = [result for result in results if result.requires_grad]
        if training and results:
            ones = [torch.ones_like(result) for result in results]
            torch.autograd.grad(results, sides.parameters(side), ones, allow_unused=True)
        end = time.perf_counter()
    for runner in runners:
        runner.close()
    return middle - begun, end - middle


def _medians(clocks: list[_Clock], whole: list[tuple[float, float]]) -> SideSeconds:
    found = SideSeconds(
        forward=statistics.median(forward for forward, _ in whole),
        backward=statistics.median(backward for _, backward in whole),
    )
    for node in dict.fromkeys(node for node, _ in clocks[-1].spent):
        both: list[Direction] = ["forward", "backward"]
        forward, backward = (
            statistics.median(clock.spent.get((node, one), 0.0) for clock in clocks) for one in both
        )
        search = isinstance(module_of(node), (PackedSelection, Selector))
        found.nodes[node] = NodeSeconds(node.name, belongs_to(node), forward, backward, search)
    return found
