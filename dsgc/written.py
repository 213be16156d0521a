"""Notices that the weights of a model were written to, in whatever way."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dsgc.memory import memory_of
from dsgc.select import fingerprint, mark_of

__all__ = ["Weights", "WrittenState"]

_PLAIN = (Tensor, nn.Parameter)
_SMALL, _SAMPLED = 1024, 256  # numbers of a tensor of which all are looked at; of a larger one


class WrittenState(NamedTuple):
    """What a model's weights were at some time: see `Weights.now`."""

    tensors: object
    marks: tuple[tuple[int, int], ...]
    samples: tuple[bytes, ...]


class Weights:
    """Tensors by their names in tables, whoever holds them at the time."""

    def __init__(self, tables: Iterable[dict[str, Any]]) -> None:
        self._tables: list[dict[str, Any]] = [table for table in tables if table]
        self._known: list[weakref.ref[Tensor]] = []
        self._marks: tuple[tuple[int, int], ...] = ()
        self._sampled: list[NDArray[np.float32]] = []
        self._same = object()

    @staticmethod
    def of(model: nn.Module) -> Weights:
        """The parameters and buffers of a model."""
        return Weights(table for m in model.modules() for table in (m._parameters, m._buffers))

    @staticmethod
    def beside(model: nn.Module, graph: fx.GraphModule) -> Weights:
        """What a graph reads that is neither: tensors that are plain attributes."""
        known = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        names = [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]
        found = {name: attrgetter(name)(graph) for name in names}
        return Weights([{n: t for n, t in found.items() if id(t) not in known}])

    def now(self) -> WrittenState | None:
        """Equal to an earlier one if nothing was written since.

        Torch counts what it writes, except through `.data` and what other libraries write to the
        memory: for these, numbers of every tensor are compared, all of small ones and some hundred
        spread over each large one. None if writes to a tensor are not counted at all, or it is of a
        class of its own.
        """
        tensors = list(self._tensors())
        if any(type(t) not in _PLAIN or t.is_inference() for t in tensors):
            return None
        marks = tuple(map(mark_of, tensors))
        # Memory that was freed may be another tensor's by now: marks alone do not tell.
        same = len(tensors) == len(self._known) and all(
            known() is tensor for known, tensor in zip(self._known, tensors, strict=True)
        )
        if not same:
            self._known, self._same = [weakref.ref(tensor) for tensor in tensors], object()
        if not same or marks != self._marks:
            # Views read memory where it is: they are made anew when a tensor has moved.
            self._sampled = [_sample(t) for t in tensors if _is_readable(t)]
            self._marks = marks
        return WrittenState(self._same, marks, tuple([view.tobytes() for view in self._sampled]))

    def sums(self) -> list[Tensor]:
        """A few numbers of every tensor that hardly any change leaves as they are."""
        return [one for tensor in self._tensors() for one in fingerprint(tensor)]

    def need_gradient(self) -> bool:
        """Whether any of them does."""
        return any(tensor.requires_grad for tensor in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        return (t for table in self._tables for t in table.values() if t is not None)


def _is_readable(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.is_cpu and tensor.numel() > 0


def _sample(tensor: Tensor) -> NDArray[np.float32]:
    """A view of numbers of a tensor: all of a small one."""
    extents = zip(tensor.shape, tensor.stride(), strict=True)
    length = sum((size - 1) * step for size, step in extents) + 1
    whole: NDArray[np.float32] = memory_of(tensor, length)
    return whole if length <= _SMALL else whole[:: length // _SAMPLED]
