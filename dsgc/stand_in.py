"""A module that stands in for a model: the same parameters, attributes, children and hooks."""

from __future__ import annotations

import copy
import inspect
import types
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from itertools import chain
from operator import is_, itemgetter, methodcaller
from typing import Any

import torch
from torch import nn

from dsgc.errors import UnsupportedError

__all__ = ["StandIn", "Structure", "copy_of"]

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def copy_of(model: nn.Module) -> nn.Module:
    """A copy that shares the parameters, and calls the very same hooks."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    for module in model.modules():
        for name in _HOOKS:
            shared.update({id(hook): hook for hook in module.__dict__[name].values()})
    with torch.inference_mode(False):  # or buffers could not be written outside of that mode
        try:
            return copy.deepcopy(model, shared.copy())
        except Exception:
            shared.update(_without_copy(model, shared))
        try:
            return copy.deepcopy(model, shared)
        except Exception as error:
            raise UnsupportedError(
                f"the model cannot be copied: {type(error).__name__}: {error}; what cannot be "
                "copied in it must be an attribute of a module, which is shared"
            ) from error


def _without_copy(model: nn.Module, shared: dict[int, Any]) -> dict[int, Any]:
    """Attributes of which there is no copy, such as locks, open files and scripted functions."""
    found: dict[int, Any] = {}
    for module in model.modules():
        for name, value in module.__dict__.items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                copy.deepcopy(value, shared.copy())
            except Exception:
                found[id(value)] = value
    return found


class StandIn(nn.Module):
    """Looks like `model` to whoever reads or writes it; a subclass says what a call does.

    Parameters and buffers are in dicts that both share, so they cannot part. Attributes that this
    module does not have itself are the model's, to read and to write; its methods get this module
    as `self`, so that those which call the model call this one. Hooks of the model move here:
    they run around calls of this module, and the model inside runs without.

    A subclass sets `_stands` at the end of its `__init__`: what was set until then is its own.

    Args:
        model: belongs to this module from now on.
        extra: further submodules, by name.
    """

    _stands = False
    _dense: tuple[nn.Module]  # a tuple, so that parameters keep their names

    def __init__(self, model: nn.Module, extra: dict[str, nn.Module]) -> None:
        super().__init__()
        self._parameters = model._parameters
        self._buffers = model._buffers
        self._non_persistent_buffers_set = model._non_persistent_buffers_set
        self._modules: Any = _Children(model, dict(extra))
        for name in _HOOKS:
            self.__dict__[name], model.__dict__[name] = model.__dict__[name], self.__dict__[name]
        self._is_full_backward_hook = model._is_full_backward_hook
        model._is_full_backward_hook = None
        self.training = model.training
        self._dense = (model,)

    def _structure_changed(self) -> None:
        """A parameter, buffer or child of the model was set or deleted."""
        raise NotImplementedError

    def _copied_model(self) -> nn.Module:
        """A copy of the model, with its hooks and the parameters that it has here."""
        model = copy_of(self._dense[0])
        for name in _HOOKS:
            model.__dict__[name] = copy.copy(self.__dict__[name])
        model._is_full_backward_hook = self._is_full_backward_hook
        return model

    def _is_own(self, name: str) -> bool:
        """Whether setting `name` is about this module rather than the model."""
        if not self._stands:
            return True
        if _registered(self._dense[0], name):
            return False
        if name in self.__dict__ or hasattr(type(self), name):
            return True
        return name.startswith("_") and not hasattr(self._dense[0], name)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            model = self.__dict__.get("_dense")
            if model is None or name.startswith("__") or not hasattr(model[0], name):
                raise
        method = _method(model[0], name)
        return getattr(model[0], name) if method is None else types.MethodType(method, self)

    def __setattr__(self, name: str, value: Any) -> None:
        if self._is_own(name):
            super().__setattr__(name, value)
            return
        model = self._dense[0]
        before = _registered(model, name)
        setattr(model, name, value)
        if before or _registered(model, name):
            self._structure_changed()

    def __delattr__(self, name: str) -> None:
        if self._is_own(name):
            super().__delattr__(name)
            return
        registered = _registered(self._dense[0], name)
        delattr(self._dense[0], name)
        if registered:
            self._structure_changed()

    # Those of containers such as nn.Sequential; of any other model they fail as its own would.

    def __getitem__(self, index: Any) -> Any:
        model: Any = self._dense[0]
        return model[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        model: Any = self._dense[0]
        model[index] = value
        self._structure_changed()

    def __delitem__(self, index: Any) -> None:
        model: Any = self._dense[0]
        del model[index]
        self._structure_changed()

    def __len__(self) -> int:
        model: Any = self._dense[0]
        return len(model)

    def __bool__(self) -> bool:
        return bool(self._dense[0])

    def __iter__(self) -> Iterator[Any]:
        model: Any = self._dense[0]
        return iter(model)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """As in torch: the child becomes one of the model."""
        self._dense[0].add_module(name, module)
        self._structure_changed()


class _Children(MutableMapping[str, Any]):
    """The children of a model, as they are whenever one looks, and further ones behind them."""

    def __init__(self, model: nn.Module, further: dict[str, nn.Module]) -> None:
        self._model, self._further = model, further

    def _holder(self, name: str) -> dict[str, Any]:
        return self._further if name in self._further else self._model._modules

    def __getitem__(self, name: str) -> Any:
        return self._holder(name)[name]

    def __setitem__(self, name: str, child: Any) -> None:
        self._holder(name)[name] = child

    def __delitem__(self, name: str) -> None:
        del self._holder(name)[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._model._modules
        yield from self._further

    def __len__(self) -> int:
        return len(self._model._modules) + len(self._further)

    def copy(self) -> dict[str, Any]:
        """A dict of them, as torch takes it for replicas."""
        return dict(self)


def _method(model: nn.Module, name: str) -> types.FunctionType | None:
    """A method of the user's class that may as well be called with a stand-in for `self`: what it
    calls the model for is sparse then. One that calls `super()` may not.
    """
    found = inspect.getattr_static(type(model), name, None)
    if not isinstance(found, types.FunctionType) or name in vars(model):
        return None
    if found.__module__.partition(".")[0] == "torch":
        return None
    inner = inspect.unwrap(found)
    code = getattr(inner, "__code__", None)
    asks = code is None or "super" in code.co_names or "__class__" in code.co_freevars
    return None if asks else found


def _registered(model: nn.Module, name: str) -> bool:
    return any(name in table for table in (model._parameters, model._buffers, model._modules))


class Structure:
    """Which modules a model consists of, and the shapes of their parameters, to notice that one was
    put in place of another.

    A parameter of the same shape is none: `torch.func.functional_call` and torch.export put tensors
    of their own there for a while.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        # Not their tables: containers put a new table of children in the place of the old one.
        self._modules = [vars(module) for module in modules]
        self._parameters = [module._parameters for module in modules]
        self._child_values = self._children()
        self._parameter_values = _values_of(self._parameters)

    def holds(self) -> bool:
        """Whether they still are the same."""
        if not self.has_same_modules():
            return False
        now = _values_of(self._parameters)
        if _same(now, self._parameter_values):
            return True
        if len(now) != len(self._parameter_values):
            return False
        pairs = zip(now, self._parameter_values, strict=True)
        return all(one is before or _alike(one, before) for one, before in pairs)

    def has_same_modules(self) -> bool:
        """Whether the modules are, whatever became of their parameters."""
        return _same(self._children(), self._child_values)

    def _children(self) -> list[Any]:
        return _values_of(map(_CHILDREN_OF, self._modules))


_CHILDREN_OF = itemgetter("_modules")
_VALUES = methodcaller("values")


def _values_of(tables: Iterable[Mapping[str, Any]]) -> list[Any]:
    # Every call asks: there is no loop in Python.
    return list(chain.from_iterable(map(_VALUES, tables)))


def _same(now: list[Any], before: list[Any]) -> bool:
    return len(now) == len(before) and all(map(is_, now, before))


def _alike(now: Any, before: Any) -> bool:
    return now is not None and before is not None and now.shape == before.shape
