"""Notices that the weights of a model were written to, in whatever way."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dsgc.select import mark_of

__all__ = ["Weights", "WrittenState"]

_PLAIN = (Tensor, nn.Parameter)


class WrittenState(NamedTuple):
    """What a model's weights were at some time: see `Weights.now`."""

    marks: tuple[tuple[int, int], ...]
    samples: tuple[float, ...]


class Weights:
    """The parameters and buffers of a model, whoever holds them at the time."""

    def __init__(self, model: nn.Module) -> None:
        tables = [table for m in model.modules() for table in (m._parameters, m._buffers)]
        self._tables: list[dict[str, Any]] = [table for table in tables if table]
        self._looked: tuple[tuple[tuple[int, int], ...], list[ctypes.c_float]] = ((), [])

    def now(self) -> WrittenState | None:
        """Equal to an earlier one if nothing was written since.

        Torch counts what it writes, except through `.data` and what other libraries write to the
        memory: for these a few numbers of every tensor are compared. None if there are tensors
        that are not plain float32, or have no memory.
        """
        tensors = [t for table in self._tables for t in table.values() if t is not None]
        if not all(type(t) in _PLAIN for t in tensors):
            return None
        marks = tuple(map(mark_of, tensors))
        known, sampled = self._looked
        if marks != known:
            # Addresses are only read from as long as the tensors have not moved.
            sampled = [number for tensor in tensors for number in _samples(tensor)]
            self._looked = marks, sampled
        return WrittenState(marks, tuple([number.value for number in sampled]))

    def sums(self) -> list[int]:
        """One number for each tensor that hardly any change leaves as it is; reads all of them."""
        tensors = [t for table in self._tables for t in table.values() if t is not None]
        words = [t.detach().view(torch.int32) for t in tensors if t.dtype == torch.float32]
        return [int(one.sum(dtype=torch.int64)) for one in words]

    def need_gradient(self) -> bool:
        """Whether any of them does."""
        return any(
            t is not None and t.requires_grad for table in self._tables for t in table.values()
        )


def _samples(tensor: Tensor) -> list[ctypes.c_float]:
    """Numbers of a tensor, as they are whenever they are looked at: the first, the last, and two
    between.
    """
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.numel():
        return []
    sizes, strides = tensor.shape, tensor.stride()
    places = []
    for part in (0.0, 0.31, 0.67, 1.0):
        offset = sum(int(part * (n - 1)) * step for n, step in zip(sizes, strides, strict=True))
        places.append(tensor.data_ptr() + 4 * offset)
    return [ctypes.c_float.from_address(place) for place in places]
