"""Runs a model whose own code cannot be traced around children that can.

A skeleton is a twin of a module that shares everything with it but its children: those are
replaced by callers of compiled parts. The user's forward then runs as it is, unpatched.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from dsgc.tracing.blame import is_torch_layer

__all__ = ["PartCaller", "Skeletons"]

CallPart = Callable[[str, tuple[Any, ...], dict[str, Any]], Any]

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class Skeletons:
    """The skeletons of the modules of one model, made as needed."""

    def __init__(self, model: nn.Module, call_part: CallPart) -> None:
        self.model = model
        self.call_part = call_part
        self.twins: dict[str, nn.Module] = {}
        self.called: dict[str, set[object]] = {}

    def has(self, path: str, kind: object) -> bool:
        """Whether the module `path` runs by its own code in calls of this kind."""
        return kind in self.called.get(path, ())

    def make(self, path: str, kind: object) -> None:
        """From now on the module `path` runs by its own code in such calls."""
        self.peek(path)
        self.called.setdefault(path, set()).add(kind)

    def forget(self, path: str, kind: object) -> None:
        """Undo `make`."""
        self.called.get(path, set()).discard(kind)

    def peek(self, path: str) -> nn.Module:
        """The twin of the module `path`, to reach its children."""
        if path not in self.twins:
            module = self.model.get_submodule(path)
            twin = type(module).__new__(type(module))
            twin.__dict__.update(module.__dict__)
            twin.__dict__["_modules"] = {
                name: None
                if child is None
                else self._wrap(child, f"{path}.{name}" if path else name)
                for name, child in module._modules.items()
            }
            self.twins[path] = twin
        return self.twins[path]

    def _wrap(self, child: nn.Module, path: str) -> nn.Module:
        if isinstance(child, _CONTAINERS) and is_torch_layer(child):
            return self.peek(path)
        if is_torch_layer(child) and not isinstance(child, (nn.Conv2d, nn.Linear)):
            return child
        if isinstance(child, torch.jit.ScriptModule):
            return child  # compiled by torch already, and no class to make another of
        return PartCaller.of(self, child, path)

    def call(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module `path` by its own code; attributes it sets are kept on the original."""
        original, twin = self.model.get_submodule(path), self.twins[path]
        _copy_attributes(original, twin)
        try:
            return twin(*args, **kwargs)
        finally:
            _copy_attributes(twin, original)


def _copy_attributes(source: nn.Module, target: nn.Module) -> None:
    """Everything but the children, and nothing else."""
    for name in [name for name in target.__dict__ if name not in source.__dict__]:
        del target.__dict__[name]
    target.__dict__.update({k: v for k, v in source.__dict__.items() if k != "_modules"})


class PartCaller:
    """What stands in a skeleton for a child: looks like it in all respects, and calls its compiled
    part.

    It shares the child's attributes, parameters and mode, and is of a subclass of its class. Its
    children are those of the child's twin, so that a forward that reaches through
    `self.body.conv1(x)` calls compiled parts as well.
    """

    _owner: Skeletons
    _path: str

    @staticmethod
    def of(owner: Skeletons, child: nn.Module, path: str) -> nn.Module:
        """One that stands for `child`; or `child` itself, dense, where there can be none."""
        kind = type(child)
        bases: Any = (_CallerOfMany, kind) if hasattr(kind, "__iter__") else (PartCaller, kind)
        # Not in its attributes, which are the child's.
        own = {"_owner": owner, "_path": path, "__module__": kind.__module__}
        try:
            made = types.new_class(kind.__name__, bases, exec_body=lambda names: names.update(own))
        except Exception:  # a class of the user's may refuse to be derived from
            return child
        caller: nn.Module = object.__new__(made)
        object.__setattr__(caller, "__dict__", child.__dict__)
        return caller

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled part."""
        return self._owner.call_part(self._path, args, kwargs)

    forward = __call__

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_modules"]:
            return self._inside()._modules[name]
        return super().__getattr__(name)  # type: ignore[misc]

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """As in torch."""
        return self._inside().named_children()

    def _inside(self) -> nn.Module:
        return self._owner.peek(self._path)


class _CallerOfMany(PartCaller):
    """Stands for a child with items, such as nn.Sequential."""

    def __getitem__(self, key: Any) -> Any:
        inside: Any = self._inside()
        return inside[key]

    def __iter__(self) -> Iterator[Any]:
        inside: Any = self._inside()
        return iter(inside)
