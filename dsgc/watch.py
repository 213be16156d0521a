"""Running a graph node by node, with what each node does forward and backward told to somebody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from dsgc.passes.mark_layers import belongs_to

__all__ = ["Direction", "Watched", "label_of", "named_ranges", "profiler_is_on"]

Direction = Literal["forward", "backward"]
Told = Callable[[fx.Node, Direction], None]


class Watched(fx.Interpreter):
    """Runs a graph; `begin` and `end` are called around every node, and around its backward.

    What autograd adds to a parameter's gradient belongs to no node. `close` ends the watching of
    backward.

    Args:
        gm: the graph.
        begin, end: get the node, and "forward" or "backward"; by default nobody listens.
        made: gets a node and every tensor that it made, when it has.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        begin: Told = lambda node, direction: None,
        end: Told = lambda node, direction: None,
        made: Callable[[fx.Node, Tensor], None] | None = None,
    ) -> None:
        super().__init__(gm)
        self.extra_traceback = False
        self.begin, self.end, self.made = begin, end, made
        self._known: set[Any] = set()
        self._handles: list[Any] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        if n.op in ("placeholder", "output", "get_attr"):
            result = super().run_node(n)
            self._tell(n, result)
            return result
        self.begin(n, "forward")
        try:
            result = super().run_node(n)
        finally:
            self.end(n, "forward")
        self._tell(n, result)
        return result

    def _tell(self, node: fx.Node, result: Any) -> None:
        for tensor in pytree.tree_leaves(result):
            if not isinstance(tensor, Tensor):
                continue
            if self.made is not None and node.op != "output":
                self.made(node, tensor)
            if tensor.grad_fn is not None:
                self._follow(node, tensor.grad_fn)

    def _follow(self, node: fx.Node, function: Any) -> None:
        """Watch the backward of what `node` has just added to autograd's graph."""
        work = [function]
        while work:
            function = work.pop()
            if function is None or function in self._known:
                continue
            self._known.add(function)
            if type(function).__name__ == "AccumulateGrad":
                continue  # it lives as long as its parameter, not as long as this run
            self._handles += (
                function.register_prehook(lambda *_: self.begin(node, "backward")),
                function.register_hook(lambda *_: self.end(node, "backward")),
            )
            work.extend(following for following, _ in function.next_functions)

    def close(self) -> None:
        """Stop watching: a backward from now on is not told."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._known.clear()


def label_of(node: fx.Node) -> str:
    """What a node does, in a word: `conv2d`, `MaskedBatchNorm`, `reshape`."""
    if node.op == "call_module":
        owner = node.graph.owning_module
        found = owner.get_submodule(str(node.target)) if owner is not None else None
        return type(found).__name__ if found is not None else str(node.target)
    if isinstance(node.target, str):
        return node.target.rpartition(".")[2] if node.op == "get_attr" else node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target.overloadpacket.__name__)
    return str(getattr(node.target, "__name__", node.target))


def profiler_is_on() -> bool:
    """Whether a profiler of torch is recording."""
    return bool(torch.autograd.profiler._is_profiler_enabled)


def named_ranges(gm: fx.GraphModule) -> Watched:
    """A runner of `gm` that opens a range of torch's profiler around every node.

    Ranges are called `dsgc: LAYER: OPERATOR (forward)`, and `(backward)` around its gradients.
    """
    open_ranges: dict[tuple[fx.Node, Direction], list[Any]] = {}

    def begin(node: fx.Node, direction: Direction) -> None:
        name = f"dsgc: {belongs_to(node) or 'input'}: {label_of(node)} ({direction})"
        made: Any = torch.profiler.record_function(name)
        open_ranges.setdefault((node, direction), []).append(made)
        made.__enter__()

    def end(node: fx.Node, direction: Direction) -> None:
        open_ranges[node, direction].pop().__exit__(None, None, None)

    return Watched(gm, begin, end)
