"""The graphs of one part of a model, made as they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from dsgc.codegen import cpu_functions
from dsgc.direct_calls import call_directly
from dsgc.passes.choose_kernels import choose_kernels
from dsgc.passes.context import Context
from dsgc.passes.lower_to_packed import lower_to_packed
from dsgc.passes.pipeline import LOWERING, SEMANTIC, Observer, run_passes
from dsgc.tracing.call_shape import CallShape
from dsgc.tracing.trace import Traced

__all__ = ["Program", "extents", "unlike_first"]


class Program:
    """The graphs of one part of a model for one kind of call and shape.

    Attributes:
        dense: the traced graph, until `semantic` or `lowered` is asked for, which rewrite it.
        path: of the part in the model; "" is all of it.
        call: how it is called.
        example: fake tensors like those of the first call, which take no memory.
        traced: what tracing said besides the graph.
        one_batch: whether it serves only batches of the example's size.
    """

    def __init__(
        self,
        traced: Traced,
        context: Context,
        observe: Observer | None,
        path: str,
        call: CallShape,
        example: list[Tensor],
    ) -> None:
        self.dense, self.traced = traced.graph_module, traced
        self.context = context
        self.observe = observe
        self.path, self.call, self.example = path, call, example
        self.one_batch = False
        self._semantic: fx.GraphModule | None = None
        self._lowered: dict[str, fx.GraphModule] = {}
        self._direct: dict[str, Callable[..., Any]] = {}
        self._making = threading.RLock()

    @property
    def semantic(self) -> fx.GraphModule:
        """The graph on dense tensors and masks."""
        if self._semantic is None:
            with self._making:
                if self._semantic is None:
                    self._semantic = run_passes(self.dense, self.context, SEMANTIC, self.observe)
        return self._semantic

    def lowered(self, namespace: str) -> fx.GraphModule:
        """The graph on packed values, with the kernels of `namespace`."""
        if namespace not in self._lowered:
            with self._making:
                if namespace not in self._lowered:
                    semantic = self.semantic
                    self.context.namespace = namespace
                    lowered = run_passes(semantic, self.context, LOWERING, self.observe)
                    self._lowered[namespace] = lowered
        return self._lowered[namespace]

    def direct(self, namespace: str) -> Callable[..., Any]:
        """What runs `lowered` without torch's dispatcher."""
        if namespace not in self._direct:
            lowered = self.lowered(namespace)
            with self._making:
                if namespace not in self._direct:
                    self._direct[namespace] = call_directly(lowered, cpu_functions())
        return self._direct[namespace]

    def exposed(self, namespace: str) -> fx.GraphModule:
        """As `lowered`, returning also the dense form of all values of `semantic`, by name."""
        self.context.namespace = namespace
        exposing = lower_to_packed(self.semantic, self.context, expose=True)
        return choose_kernels(exposing, self.context)


def extents(tensors: list[Tensor]) -> tuple[int, ...]:
    """The first extent of every input that has one: usually the size of the batch."""
    return tuple(int(tensor.shape[0]) for tensor in tensors if tensor.dim())


def unlike_first(tensors: list[Tensor]) -> tuple[str, ...]:
    """Of each further input whether it is of the first one's batch: what is added to what depends
    on it.
    """
    # Not as numbers, which would fix the symbols that torch.export has in their place.
    first, *others = [tensor.shape[0] for tensor in tensors if tensor.dim()] or [0]
    return tuple("same" if n == first else "one" if n == 1 else "other" for n in others)
