"""What code does besides computing its result: noticed, and undone.

A graph repeats what was recorded of the user's code. An attribute that a forward sets, a buffer
that it changes or a random number that it draws in Python happens while the graph is made and never
again.
"""

from __future__ import annotations

import pickle
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import zip_longest
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Undone"]

_LARGE = 1000  # items of a container, from which they are not looked into one by one
_Container = dict[Any, Any] | list[Any] | set[Any] | deque[Any]


class Undone:
    """Within, `effect` says what the body did to a model or to random generators; then undone.

    Noticed are attributes of all modules, containers in them, tensors, and the generators of torch,
    random and numpy and those that modules hold.
    """

    def __init__(self, model: nn.Module) -> None:
        self.attributes: list[tuple[str, nn.Module, dict[str, Any]]] = []
        self.contents: dict[int, tuple[str, _Container, list[Any]]] = {}
        self.tensors: dict[int, tuple[str, Tensor, Tensor]] = {}
        self.generators = list(_global_generators())
        for name, module in model.named_modules():
            # A lazy layer learns its sizes from its first call, which is no effect to undo.
            if not (isinstance(module, LazyModuleMixin) and _is_lazy(module)):
                self._remember(f"{name}." if name else "", module)
        self.writes = _Writes({_storage(t): name for name, t, _ in self.tensors.values()})

    def _remember(self, prefix: str, module: nn.Module) -> None:
        self.attributes.append((prefix, module, dict(module.__dict__)))
        for key, value in module.__dict__.items():
            inside = key in ("_parameters", "_buffers", "_modules")
            self._look_at(prefix if inside else f"{prefix}{key}", value)

    def _look_at(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            if id(value) not in self.tensors and _storage(value):
                self.tensors[id(value)] = (name, value, value.detach())
        elif isinstance(value, (dict, list, set, deque, tuple)):
            if id(value) in self.contents:
                return
            if not isinstance(value, tuple):
                self.contents[id(value)] = (name, value, _contents(value))
            if len(value) > _LARGE:
                return
            named = value.items() if isinstance(value, dict) else ((None, v) for v in value)
            for key, item in named:
                dotted = not name or name.endswith(".")
                self._look_at(f"{name}{key}" if dotted and key is not None else name, item)
        else:
            self.generators.extend(_generator(value))

    def __enter__(self) -> Self:
        self.states = [read() for read, _ in self.generators]
        self.writes.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self.writes.__exit__(*error)  # type: ignore[no-untyped-call]
        with unset_fake_temporarily(), torch.inference_mode(False), torch.no_grad():
            self.writes.undo()
            for _, tensor, alias in self.tensors.values():
                if _storage(tensor) != _storage(alias):
                    tensor.data = alias
        for _, container, before in self.contents.values():
            if not _same(_contents(container), before):
                _refill(container, before)
        for _, module, attributes in self.attributes:
            now = module.__dict__
            for name in [name for name in now if name not in attributes]:
                del now[name]
            now.update({k: v for k, v in attributes.items() if now.get(k, now) is not v})
        for (_, write), state in zip(self.generators, self.states, strict=True):
            write(state)

    def effect(self) -> tuple[str, str]:
        """What was done so far, in words, and a pattern of the line that did it; or empty."""
        for prefix, module, before in self.attributes:
            changed = [k for k, v in module.__dict__.items() if before.get(k, before) is not v]
            # torch.fx keeps the constants that it meets on the module that it traces.
            changed = [k for k in changed if not k.startswith("_tensor_constant")]
            changed += [k for k in before if k not in module.__dict__]
            if changed:
                return f"sets the attribute {prefix + changed[0]!r}", rf"\b{changed[0]}\b"
        for name, container, contents in self.contents.values():
            now = _contents(container)
            if not _same(now, contents):
                if isinstance(container, dict) and (not name or name.endswith(".")):
                    pairs = zip_longest(now, contents)
                    name += next(str((a or b)[0]) for a, b in pairs if not _same([a], [b]))
                return f"changes what is in {name!r}", rf"\b{name.rpartition('.')[2]}\b"
        for name, tensor, alias in self.tensors.values():
            if name in self.writes.written or _storage(tensor) != _storage(alias):
                return f"changes the tensor {name!r}", rf"\b{name.rpartition('.')[2]}\b"
        if self.writes.read:
            name = next(iter(self.writes.read))
            what = f"computes with the tensor {name!r} in a way that a graph would not repeat"
            return what, rf"\b{name.rpartition('.')[2]}\b|parameters|buffers|state_dict"
        states = zip(self.generators, self.states, strict=True)
        if any(pickle.dumps(read()) != pickle.dumps(state) for (read, _), state in states):
            return "draws random numbers in Python", r"rand|bernoulli|choice|sample|shuffle|uniform"
        return "", ""


class _Writes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what is written to tensors of the model, and what was there before; and which of them
    are computed with.
    """

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.written: set[str] = set()
        self.read: dict[str, None] = {}
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for i, argument in enumerate(func._schema.arguments):
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                if argument.alias_info is not None and argument.alias_info.is_write:
                    self._note(value)
        elif not _is_view(func):
            for value in pytree.tree_leaves((args, kwargs)):
                if isinstance(value, Tensor) and _storage(value) in self.names:
                    self.read[self.names[_storage(value)]] = None
        return func(*args, **kwargs)

    def _note(self, value: Any) -> None:
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(tensor, Tensor) and _storage(tensor) in self.names:
                self.written.add(self.names[_storage(tensor)])
                self.before.append((tensor, tensor.detach().clone()))

    def undo(self) -> None:
        for tensor, before in reversed(self.before):
            tensor.copy_(before)


def _is_view(func: Any) -> bool:
    """Whether an operator computes nothing, and gives back a part of its input."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def _is_lazy(module: Any) -> bool:
    return bool(module.has_uninitialized_params())


def _storage(tensor: Tensor) -> int:
    """Identity of a tensor's memory; 0 for kinds of tensors that have none of their own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError, ValueError):
        return 0


def _contents(container: _Container) -> list[Any]:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _same(now: Iterable[Any], before: Iterable[Any]) -> bool:
    """Whether two lists hold the very same objects, or pairs of them."""
    now, before = list(now), list(before)
    return len(now) == len(before) and all(
        a is b
        or (type(a) is tuple is type(b) and len(a) == 2 == len(b) and a[0] == b[0] and a[1] is b[1])
        for a, b in zip(now, before, strict=True)
    )


def _refill(container: _Container, contents: list[Any]) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(contents)
    else:
        container.extend(contents)


_Generator = tuple[Callable[[], Any], Callable[[Any], Any]]


def _global_generators() -> Iterator[_Generator]:
    yield from _generator(torch.default_generator)
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            yield from _generator(generator)


def _read_generator(generator: torch.Generator) -> Any:
    with unset_fake_temporarily():
        return generator.get_state().numpy().copy()


def _write_generator(generator: torch.Generator, state: Any) -> None:
    with unset_fake_temporarily():
        generator.set_state(torch.from_numpy(state))


def _generator(value: Any) -> Iterator[_Generator]:
    """How to read and write the state of a random generator; nothing for other values."""
    if isinstance(value, torch.Generator):
        yield partial(_read_generator, value), partial(_write_generator, value)
    elif isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        yield value.getstate, value.setstate
    elif isinstance(value, np.random.RandomState):
        yield value.get_state, value.set_state
    elif isinstance(value, np.random.Generator):
        bits = value.bit_generator
        yield lambda: bits.state, lambda state: setattr(bits, "state", state)
