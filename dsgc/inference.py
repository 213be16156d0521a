"""Inference: the program of a lowered graph in the graph's place, wherever that gives the same."""

from __future__ import annotations

import itertools
import math
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from dsgc.bank import SelectorBank
from dsgc.codegen import release_memory
from dsgc.codegen.tiles import FEW_ROWS, SKIP_SAMPLES
from dsgc.errors import ExportError, KernelError
from dsgc.observed import is_observed, is_ordinary
from dsgc.select import all_equal
from dsgc.warn_user import warn_user
from dsgc.watch import profiler_is_on
from dsgc.written import Weights

if TYPE_CHECKING:
    from dsgc.programs.live import LiveProgram

__all__ = ["Inference"]

_FEW_CALLS = 24  # that programs must serve for making them to have been worth the time
_MOST_WAITS = 32
_MOST_PROGRAMS = 4  # each holds all weights


@dataclass
class _Made:
    """A program, and what it was made for."""

    program: LiveProgram
    sums: list[Tensor]
    calls: int = 0
    used: int = 0


@dataclass
class _Graph:
    """The programs of one graph, by the size of batches, and whether to make more.

    `state` is that of the weights which they hold, `constants` are further tensors that they hold.
    """

    constants: Weights
    made: dict[int, _Made] = field(default_factory=dict)
    state: tuple[object, ...] = ()
    calls: int = 0
    waits: int = 0
    refused: str = ""

    def drop(self) -> bool:
        """Give the programs up; those to come wait longer where these were hardly used. Whether
        there were any.
        """
        if not self.made:
            return False
        self._wait_for(sum(one.calls for one in self.made.values()))
        self.made.clear()
        return True

    def drop_one(self, size: int) -> None:
        """Give one program up; it is not made again before it was missed for a while."""
        self._wait_for(self.made.pop(size).calls)
        self.calls = 0

    def _wait_for(self, calls: int) -> None:
        hardly = calls < _FEW_CALLS
        self.waits = min(_MOST_WAITS, 2 * self.waits + 1) if hardly else 0


class Inference:
    """Runs lowered graphs as programs, whose kernels follow each other without torch in between.

    A program holds weights as kernels want them, batch norms folded in. It is made when a graph is
    first called for inference, which takes about as long as a few calls, and again after weights
    were written; where that happens every few calls, the graph itself runs for a while.

    Args:
        model: the dense one inside.
        bank: its selectors.
    """

    def __init__(self, model: nn.Module, bank: SelectorBank) -> None:
        self._bank = bank
        self._modules = list(model.modules())
        self._names = [name for name, _ in model.named_modules()]
        self._model = model
        self._weights = Weights.of(model)
        self._graphs: weakref.WeakKeyDictionary[fx.GraphModule, _Graph] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = _ForkedLock()
        self._clock = itertools.count(1)

    def is_wanted(self, tensors: Sequence[Tensor]) -> bool:
        """Whether a call with these inputs is inference, which nobody follows node by node."""
        if self._bank.holding or any(module.training for module in self._modules):
            return False
        if not all(map(_is_plain, tensors)):
            return False
        batches = {x.shape[0] if x.dim() else 0 for x in tensors}
        if len(batches) != 1 or 0 in batches or is_observed():
            return False
        needed = any(x.requires_grad for x in tensors) or self._weights.need_gradient()
        return not (torch.is_grad_enabled() and needed)

    def program(self, graph: fx.GraphModule, tensors: Sequence[Tensor]) -> LiveProgram | None:
        """The program of a graph for these inputs, made if need be; None if there is none."""
        with self._lock.held():
            about = self._graphs.get(graph)
            if about is None:
                about = self._graphs[graph] = _Graph(Weights.beside(self._model, graph))
            state = None if about.refused else self._state(about)
            if state is None:
                return None
            size = _size_of(len(tensors[0]))
            if state != about.state:
                about.drop()
                about.state, about.calls = state, 0
            found = about.made.get(size) or self._make(graph, about, size, tensors)
            if found is None:
                return None
            found.calls += 1
            found.used = next(self._clock)
            return found.program

    def refuses(self, graph: fx.GraphModule) -> bool:
        """Whether a graph was found to have something that no program can hold."""
        about = self._graphs.get(graph)
        return about is not None and bool(about.refused)

    def run(self, program: LiveProgram, tensors: Sequence[Tensor]) -> Any:
        """The results of a program."""
        around = torch.profiler.record_function if profiler_is_on() else None
        return program(tensors, around)

    def verify(self) -> None:
        """Drop programs whose weights were changed in a way that a call does not notice."""
        with self._lock.held():
            made = [(about, one) for about in self._graphs.values() for one in about.made.values()]
            sums = self._weights.sums() if made else []
            for about, one in made:
                if not all_equal(one.sums, sums):
                    about.drop()

    def forget(self) -> None:
        """Give the memory of all programs back."""
        with self._lock.held():
            dropped = [about.drop() for about in self._graphs.values()]
        if any(dropped):
            release_memory()

    def _state(self, about: _Graph) -> tuple[object, ...] | None:
        written, constants = self._weights.now(), about.constants.now()
        if written is None or constants is None:
            return None
        selected = tuple((one.winners, one.changes) for one in self._bank.selectors)
        return (*written, *constants, selected)

    def _make(
        self,
        graph: fx.GraphModule,
        about: _Graph,
        size: int,
        tensors: Sequence[Tensor],
    ) -> _Made | None:
        """A new program, unless weights change so often that it would not be worth its time."""
        about.calls += 1
        if about.calls <= about.waits:
            return None
        from dsgc.programs.live import LiveProgram

        try:
            with torch.no_grad():
                program = LiveProgram(graph, tensors, self._names)
                made = _Made(program, self._weights.sums())
        except ExportError as error:
            about.refused = str(error)
            return None
        except KernelError as error:
            about.refused = str(error)
            warn_user(f"inference runs without a program, which is slower: {error}")
            return None
        about.made[size] = made
        self._make_room()
        return made

    def _make_room(self) -> None:
        """Drop the programs that were not used for longest, if there are too many."""
        made = [(a, s, one) for a in self._graphs.values() for s, one in a.made.items()]
        made.sort(key=lambda entry: entry[2].used or math.inf)
        for about, size, _ in made[:-_MOST_PROGRAMS]:
            about.drop_one(size)


def _size_of(batch: int) -> int:
    """Batches of the same size in this sense are served by the same kernels."""
    return (batch > SKIP_SAMPLES) + (batch > FEW_ROWS)


def _is_plain(x: Tensor) -> bool:
    return type(x) is Tensor and x.dtype == torch.float32 and is_ordinary(x)


class _ForkedLock:
    """A lock that is free in a forked process, whoever held it in the one that it comes from."""

    def __init__(self) -> None:
        self._of = (os.getpid(), threading.Lock())

    def held(self) -> threading.Lock:
        """The lock, to be used as a context."""
        if self._of[0] != os.getpid():
            self._of = (os.getpid(), threading.Lock())
        return self._of[1]
