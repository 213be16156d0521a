"""How a module is called: what graphs are built for, and looked up by."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import keyword
import pathlib
import types
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from dsgc.errors import TraceError
from dsgc.seen import has_only_tensors

__all__ = ["CallShape", "value_key"]


@dataclass(frozen=True)
class CallShape:
    """How a module is called: where tensors stand in its arguments, and all that is no tensor."""

    spec: pytree.TreeSpec
    slots: tuple[str | None, ...]
    constants: tuple[Any, ...]

    @staticmethod
    def of(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[CallShape, list[torch.Tensor]]:
        """The structure of a call of `module`, and its tensors in order."""
        if has_only_tensors(args, kwargs):
            return _of_tensors(tuple(_parameter_names(module, args, kwargs))), list(args)
        leaves, spec = pytree.tree_flatten((args, kwargs))
        names = _parameter_names(module, args, kwargs)
        slots: list[str | None] = []
        for i, (leaf, name) in enumerate(zip(leaves, names, strict=True)):
            slots.append(_slot(i, name) if isinstance(leaf, torch.Tensor) else None)
        constants = tuple(None if isinstance(x, torch.Tensor) else x for x in leaves)
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        return CallShape(spec, tuple(slots), constants), tensors

    def arguments(self, tensors: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(args, kwargs) of such a call, with these tensors or what stands for them."""
        supply = iter(tensors)
        leaves = [
            constant if slot is None else next(supply)
            for slot, constant in zip(self.slots, self.constants, strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return args, kwargs

    @functools.cached_property
    def key(self) -> tuple[object, ...]:
        """Hashable identity of the structure: equal only if the same graph serves both calls.

        Raises:
            TraceError: an argument is an object of which that cannot be told.
        """
        return (self.spec, self.slots, tuple(value_key(c) for c in self.constants))


def _slot(place: int, name: str | None) -> str:
    return name or f"input_{place}"


@functools.lru_cache(maxsize=256)
def _of_tensors(names: tuple[str | None, ...]) -> CallShape:
    """A call with a tensor for each of the names and nothing else, kept: most calls are such."""
    spec = pytree.tree_structure(((0,) * len(names), {}))
    slots = tuple(_slot(i, name) for i, name in enumerate(names))
    return CallShape(spec, slots, (None,) * len(names))


@dataclass(frozen=True)
class _Same:
    """Equal to itself alone; keeps the object, so that no other one gets its place."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


_BY_VALUE = (
    int, str, bytes, bool, type(None), type(Ellipsis), torch.dtype, torch.device, torch.layout,
    torch.memory_format, range, slice,
)  # fmt: skip
_BY_IDENTITY = (
    type, enum.Enum, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, nn.Module,
)  # fmt: skip


def value_key(value: Any) -> tuple[object, ...]:
    """Hashable; two values with equal keys do the same in a graph.

    Raises:
        TraceError: the value is an object that may change unseen.
    """
    kind = type(value)
    if kind in _BY_VALUE:
        return (kind, str(value) if kind is slice else value)
    if kind is float:
        return (kind, value.hex())  # tells -0.0 from 0.0, and NaN is itself
    if kind is complex:
        return (kind, value.real.hex(), value.imag.hex())
    if isinstance(value, _BY_IDENTITY):
        return (kind, _Same(value))
    if isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        return (kind, str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, (tuple, list)):
        return (kind, *map(value_key, value))
    if isinstance(value, (set, frozenset)):
        return (kind, frozenset(map(value_key, value)))
    if isinstance(value, pathlib.PurePath):
        return (kind, str(value))
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, tuple(value.keywords.items()))
        return (kind, *map(value_key, parts))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return (kind, *(_field_key(value, name) for name in names))
    raise TraceError(
        f"it is called with a {kind.__module__}.{kind.__qualname__}, which may hold anything, so "
        "that a graph for one cannot be used for the next: pass tensors, numbers, strings, "
        "dataclasses or arrays of numpy"
    )


def _field_key(owner: Any, name: str) -> tuple[object, ...]:
    held = getattr(owner, name)
    if isinstance(held, torch.Tensor):
        raise TraceError(
            f"it is called with a {type(owner).__qualname__} that holds a tensor ({name}), which "
            "dsgc does not look for there: pass the tensor as an argument, or in a tuple or dict"
        )
    return value_key(held)


def _positional(forward: Any) -> tuple[str, ...]:
    """The names of a function's parameters.

    Raises:
        TypeError, ValueError: it has no signature.
    """
    if isinstance(forward, types.MethodType):
        return _of_function(forward.__func__)[1:]
    return tuple(inspect.signature(forward).parameters)


@functools.lru_cache(maxsize=256)
def _of_function(function: Any) -> tuple[str, ...]:
    """The same, kept: methods belong to classes, and one is asked for in every call."""
    return tuple(inspect.signature(function).parameters)


def _parameter_names(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[str | None]:
    """A name for every leaf of (args, kwargs), in the order of tree_flatten."""
    try:
        positional = _positional(module.forward)
    except (TypeError, ValueError):
        positional = ()
    names: list[str | None] = []
    given = [(positional[i] if i < len(positional) else "", arg) for i, arg in enumerate(args)]
    # tree_flatten keeps a dict's own order.
    for name, value in [*given, *kwargs.items()]:
        count = 1 if type(value) is torch.Tensor else len(pytree.tree_leaves(value))
        usable = name.isidentifier() and not keyword.iskeyword(name) and name != "self"
        base = name if usable else f"input_{len(names)}"
        names += [base] if count == 1 else [f"{base}_{j}" for j in range(count)]
    if len(set(names)) < len(names):
        return [f"input_{i}" for i in range(len(names))]
    return names
