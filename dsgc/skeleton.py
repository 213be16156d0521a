"""Runs a model whose own code cannot be traced around children that can.

A skeleton is a twin of a module that shares everything with it but its children: those are
replaced by callers of compiled parts. The user's forward then runs as it is, unpatched.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

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
        self.called: set[str] = set()
        self._here = threading.local()

    def has(self, path: str) -> bool:
        """Whether the module `path` runs by its own code."""
        return path in self.called

    def make(self, path: str) -> None:
        """From now on the module `path` runs by its own code."""
        self.peek(path)
        self.called.add(path)

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
        return PartCaller(self, child, path)

    def call(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module `path` by its own code; attributes it sets are kept on the original."""
        depth = getattr(self._here, "depth", 0)
        if depth == 0:
            self._sync(to_twins=True)
        self._here.depth = depth + 1
        try:
            return self.twins[path](*args, **kwargs)
        finally:
            self._here.depth = depth
            if depth == 0:
                self._sync(to_twins=False)

    def _sync(self, to_twins: bool) -> None:
        for path, twin in list(self.twins.items()):
            original = self.model.get_submodule(path)
            source, target = (original, twin) if to_twins else (twin, original)
            for name in [name for name in target.__dict__ if name not in source.__dict__]:
                del target.__dict__[name]
            changed = {k: v for k, v in source.__dict__.items() if k != "_modules"}
            target.__dict__.update(changed)


class PartCaller(nn.Module):
    """Stands in a skeleton for a child and calls its compiled part.

    Other uses of the child (its attributes, indexing) reach its twin, so that a forward that
    reaches through `self.body.conv1(x)` calls compiled parts as well.
    """

    def __init__(self, owner: Skeletons, child: nn.Module, path: str) -> None:
        super().__init__()
        self._owner = owner
        self._path = path
        self._child = (child,)  # a tuple, so that it is not registered

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the compiled part."""
        return self._owner.call_part(self._path, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in ("_owner", "_path", "_child"):
            raise AttributeError(name)
        child = self._child[0]
        if name in child._modules:
            return self._inside()._modules[name]
        return getattr(child, name)

    def _inside(self) -> nn.Module:
        return self._owner.peek(self._path)

    def __getitem__(self, key: Any) -> Any:
        inside: Any = self._inside()
        return inside[key]

    def __iter__(self) -> Iterator[Any]:
        inside: Any = self._inside()
        return iter(inside)

    def __len__(self) -> int:
        child: Any = self._child[0]
        return len(child)
