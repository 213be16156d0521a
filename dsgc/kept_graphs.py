"""The graphs that are kept of a model, and what each of them takes for granted."""

from __future__ import annotations

import itertools
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import contextmanager
from operator import is_
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from dsgc.passes.patterns import HOOKS
from dsgc.plain_data import same_leaf, spread_out
from dsgc.tracing.blame import is_torch_layer

__all__ = ["GRAPHS_OF_A_PART", "Assumptions", "Gate", "KeptGraphs"]

GRAPHS_OF_A_PART = 32
"""How many graphs are kept of a part of a model; the least recently used makes room."""

_FOLLOWED = (int, float, complex, str, bytes, type(None), Tensor, type)
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Assumptions:
    """What a graph holds as constants: attributes of the modules recorded, and their hooks.

    Built once a graph and compared at every call, so it looks things up as directly as it can.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        own_code: Set[nn.Module] = frozenset(),
        unhooked: Set[nn.Module] = frozenset(),
    ) -> None:
        """`modules` are in the graph; it only calls those of `own_code`, and has no hooks of the
        modules in `unhooked`.
        """
        self.attributes: list[tuple[dict[Any, Any], int, list[Any], list[Any]]] = []
        self.data: list[tuple[dict[str, Any], str, list[Any]]] = []
        self.hooks: list[dict[Any, Any]] = []
        for module in modules:
            if module not in unhooked:
                self.hooks += [module.__dict__[name] for name in HOOKS]
            if module in own_code:
                continue
            if is_torch_layer(module):
                self._follow(module.__dict__, _OF_EVERY_MODULE, (*_FOLLOWED, tuple))
                continue
            self._follow(module.__dict__, _OF_EVERY_MODULE)
            self._follow(module._buffers)
            self._follow(module._parameters)
            self._follow_data(module.__dict__)
        self.registered = [tuple(hooks) for hooks in self.hooks] if any(self.hooks) else []

    def _follow(
        self,
        values: dict[Any, Any],
        without: frozenset[str] = frozenset(),
        kinds: tuple[type, ...] = _FOLLOWED,
    ) -> None:
        followed = {
            name: value
            for name, value in values.items()
            if name not in without and (isinstance(value, kinds) or callable(value))
        }
        self.attributes.append((values, len(values), list(followed), list(followed.values())))

    def _follow_data(self, attributes: dict[str, Any]) -> None:
        for name, value in attributes.items():
            followed = isinstance(value, _FOLLOWED) or callable(value)
            if name not in _OF_EVERY_MODULE and not followed:
                self.data.append((attributes, name, spread_out(value)))

    def _data_holds(self) -> bool:
        spread: dict[int, list[Any]] = {}  # many modules may hold one configuration
        for attributes, name, before in self.data:
            value = attributes.get(name)
            if len(before) == 1 and value is before[0]:
                continue  # an object that is no data, however much it holds
            if id(value) not in spread:
                spread[id(value)] = spread_out(value)
            now = spread[id(value)]
            if len(now) != len(before) or not all(map(same_leaf, now, before)):
                return False
        return True

    def hold(self) -> bool:
        """Whether all is as it was when the graph was made."""
        if torch.compiler.is_compiling():
            return True  # torch.export puts tensors of its own in the place of parameters
        for attributes, count, names, before in self.attributes:
            if len(attributes) != count:
                return False
            now = list(map(attributes.get, names))
            if not all(map(is_, now, before)) and not all(map(same_leaf, now, before)):
                return False
        if self.data and not self._data_holds():
            return False
        if self.registered:
            return [tuple(hooks) for hooks in self.hooks] == self.registered
        return not any(self.hooks)


_Graphs = TypeVar("_Graphs")


class _Entry(Generic[_Graphs]):
    def __init__(self, graphs: _Graphs, holds: Callable[[], bool]) -> None:
        self.graphs, self.holds = graphs, holds
        self.used = 0


class KeptGraphs(Generic[_Graphs]):
    """Graphs by part of the model and kind of call; a bounded number of each part."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[object, list[_Entry[_Graphs]]]] = {}
        self._clock = itertools.count(1)
        self._warned = False

    def find(self, path: str, key: object) -> _Graphs | None:
        """The graphs of the part `path` for calls of this kind, if they are still right."""
        for entry in self._parts.get(path, {}).get(key, ()):
            if entry.holds():
                entry.used = next(self._clock)
                return entry.graphs
        return None

    def keep(self, path: str, key: object, graphs: _Graphs, holds: Callable[[], bool]) -> None:
        """Keep graphs, to be found as long as `holds()`."""
        entry = _Entry(graphs, holds)
        entry.used = next(self._clock)
        part = self._parts.setdefault(path, {})
        part[key] = [entry, *part.get(key, ())]
        if len(self._of(part)) > GRAPHS_OF_A_PART:
            self._drop_oldest(path, part)

    def _of(self, part: dict[object, list[_Entry[_Graphs]]]) -> list[_Entry[_Graphs]]:
        return [entry for entries in part.values() for entry in entries]

    def _drop_oldest(self, path: str, part: dict[object, list[_Entry[_Graphs]]]) -> None:
        oldest = min(self._of(part), key=lambda entry: entry.used)
        for key, entries in list(part.items()):
            rest = [entry for entry in entries if entry is not oldest]
            if rest:
                part[key] = rest
            else:
                del part[key]
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"dsgc: more than {GRAPHS_OF_A_PART} graphs of {path or 'the model'}; the least "
                "recently used are made again when they are needed, which takes time. Every image "
                "size and every value of a number that is passed, or that is an attribute of a "
                "module, has a graph of its own: use tensors for what changes often",
                UserWarning,
                stacklevel=2,
            )

    def clear(self) -> None:
        """Forget all graphs."""
        self._parts.clear()

    def __len__(self) -> int:
        return sum(len(self._of(part)) for part in self._parts.values())


class Gate:
    """Lets any number of threads run graphs, or one alone build, which sets modes for a while.

    Running is what every call does, so it takes no lock while nobody waits to build: a thread notes
    that it runs before it looks for such, who notes that it waits before it looks for threads.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: dict[int, int] = {}
        self._builder: int | None = None
        self._depth = 0
        self._builders = 0  # the one that builds, and those that wait to

    def running(self) -> _Running:
        """Within, no other thread builds."""
        return _Running(self, threading.get_ident())

    def enter(self, me: int) -> None:
        """A thread begins to run, when nobody builds."""
        self._running[me] = self._running.get(me, 0) + 1
        if not self._builders:
            return
        with self._changed:
            self._step_back(me)
            while self._builder not in (None, me):
                self._changed.wait()
            self._running[me] = self._running.get(me, 0) + 1

    def leave(self, me: int) -> None:
        """A thread has run."""
        self._step_back(me)
        if self._builders:
            with self._changed:
                self._changed.notify_all()

    def _step_back(self, me: int) -> None:
        count = self._running[me] - 1
        if count:
            self._running[me] = count
        else:
            del self._running[me]

    @contextmanager
    def building(self) -> Iterator[None]:
        """Within, no other thread runs or builds."""
        me = threading.get_ident()
        with self._changed:
            self._builders += 1
            # A thread that waits here runs nothing meanwhile, also in the midst of a call.
            mine = self._running.pop(me, 0)
            self._changed.notify_all()
            while self._builder not in (None, me) or (self._running and self._builder is None):
                self._changed.wait()
            self._builder = me
            self._depth += 1
        try:
            yield
        finally:
            with self._changed:
                self._depth -= 1
                self._builders -= 1
                if not self._depth:
                    self._builder = None
                if mine:
                    self._running[me] = mine
                self._changed.notify_all()


class _Running:
    """What a call of few layers enters and leaves: quicker than a generator."""

    __slots__ = ("_gate", "_me")

    def __init__(self, gate: Gate, me: int) -> None:
        self._gate, self._me = gate, me

    def __enter__(self) -> None:
        self._gate.enter(self._me)

    def __exit__(self, *_: object) -> None:
        self._gate.leave(self._me)
