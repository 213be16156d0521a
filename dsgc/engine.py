"""Builds and runs the graphs of a sparse module, for the calls and shapes that it meets."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsgc.acceptable import closed_around
from dsgc.backend import Backend
from dsgc.bank import SelectorBank
from dsgc.config import SparsityConfig
from dsgc.errors import InputError, NothingToSparsifyError, TraceError
from dsgc.inference import Inference
from dsgc.kept_graphs import Assumptions, Gate, KeptGraphs
from dsgc.nothing_sparse import DID_NOT_RUN, no_sparse_layer, warn_of_idle_rules
from dsgc.observed import is_observed
from dsgc.ops.first_derivative import refuse_forward_mode
from dsgc.passes.choose_layers import is_layer
from dsgc.passes.context import Context, LayerDecision
from dsgc.passes.pipeline import (
    ANALYSIS,
    PREPARATION,
    Observer,
    run_passes,
    write_to,
)
from dsgc.passes.propagate_shapes import (
    depends_on_batch,
    eval_mode,
    fake_inputs,
    propagate_shapes,
)
from dsgc.program import Program, extents, unlike_first
from dsgc.seen import SeenCall, copies_of
from dsgc.skeleton import Skeletons
from dsgc.stayed_dense import StayedDense
from dsgc.tracing.call_shape import CallShape
from dsgc.tracing.trace import trace
from dsgc.warn_user import warn_user
from dsgc.watch import named_ranges, profiler_is_on

__all__ = ["Engine"]

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip


class Engine:
    """All graphs of one sparse module. Holds no state that is worth saving.

    A model that traces is one part. Where the code of the model itself cannot be traced, its
    children are parts of their own, called by a `Skeletons` twin of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        config: SparsityConfig,
        bank: SelectorBank,
        decisions: dict[str, LayerDecision],
        untraced: dict[str, str],
        backend: str,
    ) -> None:
        self.model = model
        self.bank = bank
        self.backend = Backend(model, backend)
        self.inference = Inference(model, bank)
        self.untraced = untraced
        self.config = config
        self.decisions = decisions
        self.decided = bool(decisions)
        self.dense: StayedDense | None = None  # if no layer became sparse
        if self.decided and not _any_sparse(decisions):
            self.dense = StayedDense(decisions)
        part = weakref.WeakMethod(self.call_part)  # or the engine would keep itself alive
        self.skeletons = Skeletons(model, lambda *call: _there(part())(*call))
        self.programs: KeptGraphs[Program] = KeptGraphs()
        self.gate = Gate()
        self.profiled: list[Program] | None = None
        self.last: tuple[Program, str | None] | None = None
        self.own_code = ""  # why the last call was none of a graph
        self.watch: Callable[[Program, str | None, list[Tensor]], Any] | None = None
        self.seen = SeenCall((), {})
        place = os.environ.get("DSGC_DUMP")
        self.observe = write_to(Path(place)) if place else None

    # Running

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Choose the layers if that has not been done, from the shapes of this call."""
        if not self.decided:
            with self.gate.building():
                if not self.decided:
                    self._decide(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model on the graphs for this call.

        Where no layer became sparse, or none is yet, there is nothing to gain from graphs: after
        the first call, which leaves one to look at, the model runs as it is. (Most calls of the
        former go through `dense` and do not get here.)
        """
        before = self.seen, self.own_code
        try:
            with self.gate.running():
                self.seen = SeenCall(args, kwargs)
                return self._run_somehow(args, kwargs)
        except BaseException:  # what is known is of the last call that did not fail
            self.seen, self.own_code = before
            raise

    def _run_somehow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        dense = self.dense is not None or self.bank.dense_now
        if self.last is None or self.profiled is not None or not dense:
            return self.call_part("", args, kwargs)
        return self.model(*args, **kwargs)

    def call_part(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the submodule `path`: as a graph, or by its own code around graphs."""
        kind = self._kind_of(path, args, kwargs) if path in self.skeletons.called else None
        if self.skeletons.has(path, kind):
            return self._run_own_code(path, args, kwargs)
        try:
            program, tensors = self.program(path, args, kwargs)
        except TraceError as error:
            return self._begin_own_code(path, args, kwargs, str(error))
        if self.profiled is not None:
            self.profiled.append(program)
            return propagate_shapes(program.dense, tensors, self.model)
        if not path:
            self.own_code = ""
        return self.execute(program, tensors)

    def _kind_of(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Calls of one kind run the same code; None is all those of which that cannot be told."""
        try:
            return CallShape.of(self.model.get_submodule(path), args, kwargs)[0].key
        except TraceError:
            return None

    def _begin_own_code(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
    ) -> Any:
        """Run a part by its own code from now on, unless that fails as well: then the call was
        wrong, and the next is judged for itself.
        """
        kind, before = self._kind_of(path, args, kwargs), self.untraced.get(path)
        self.skeletons.make(path, kind)
        self.untraced[path] = reason
        try:
            return self._run_own_code(path, args, kwargs)
        except BaseException:
            self.skeletons.forget(path, kind)
            del self.untraced[path]
            if before is not None:
                self.untraced[path] = before
            raise

    def _run_own_code(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not path:
            self.own_code = self.untraced[path]
        return self.skeletons.call(path, args, kwargs)

    def execute(self, program: Program, tensors: list[Tensor]) -> Any:
        """Run the graph of a program that the backend asks for."""
        namespace = self.backend.namespace_for(tensors)
        self.last = (program, namespace)
        if self.watch is not None:
            return self.watch(program, namespace, tensors)
        if namespace is None:
            return _run(program.semantic, tensors)
        if not torch.is_autocast_enabled("cpu"):
            return self._run_lowered(program, namespace, tensors)
        self.backend.warn_of_autocast()
        with torch.autocast("cpu", enabled=False):
            wide = [t.float() if t.is_floating_point() else t for t in tensors]
            return self._run_lowered(program, namespace, wide)

    def _run_lowered(self, program: Program, namespace: str, tensors: list[Tensor]) -> Any:
        graph = program.lowered(namespace)
        if self.inference.is_wanted(tensors):
            found = self.inference.program(graph, tensors)
            if found is not None:
                return self.inference.run(found, tensors)
        if profiler_is_on() or is_observed() or not self.backend.is_ordinary(tensors):
            refuse_forward_mode(tensors, self.model)
            return _run(graph, tensors)
        return program.direct(namespace)(*tensors)

    # Building

    def program(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Program, list[Tensor]]:
        """The program of a part for this call, and the tensors to run it with."""
        call, tensors = CallShape.of(self.model.get_submodule(path), args, kwargs)
        shapes = tuple((t.shape[1:], t.dim(), t.dtype, t.device) for t in tensors)
        key = (*call.key, shapes, unlike_first(tensors))
        program = self._find(path, key, tensors)
        if program is None:
            with self.gate.building():
                # Another thread may have been faster.
                program = self._find(path, key, tensors) or self._make(path, key, call, tensors)
        return program, tensors

    def _find(self, path: str, key: object, tensors: list[Tensor]) -> Program | None:
        """The program for calls like this one: for any batch, or for one of this size."""
        return self.programs.find(path, key) or self.programs.find(path, (key, extents(tensors)))

    def _make(self, path: str, key: object, call: CallShape, tensors: list[Tensor]) -> Program:
        """A new program, kept for all calls that are like this one."""
        program = self._build(path, call, fake_inputs(tensors), self.observe)
        try:
            propagate_shapes(program.dense, program.example, self.model, instead=tensors)
        except InputError as error:
            if not self._accepts(path, call, tensors):
                raise
            raise TraceError(
                f"{path or type(self.model).__name__} cannot be traced: a graph of its code fails "
                f"where the code itself does not: {error.__cause__}"
            ) from error
        program.one_batch = depends_on_batch(program.dense, program.example, self.model)
        if self.decided:
            run_passes(program.dense, program.context, ANALYSIS, self.observe)
        own_code = set(map(self.model.get_submodule, program.traced.untraced))
        # Hooks of the model itself run around its graph, whenever they are registered.
        unhooked = set() if path else {self.model}
        assumed = Assumptions(program.traced.recorded, own_code, unhooked)
        kept = (key, extents(tensors)) if program.one_batch else key
        self.programs.keep(path, kept, program, assumed.hold)
        return program

    def _accepts(self, path: str, call: CallShape, tensors: list[Tensor]) -> bool:
        """Whether a part runs by its own code on these inputs."""
        args, kwargs = copies_of(*call.arguments(tensors))
        with eval_mode(self.model), suppress(Exception):
            self.model.get_submodule(path)(*args, **kwargs)
            return True
        return False

    def again(self, program: Program, observe: Observer | None = None) -> Program:
        """A fresh program of a part for the same call, with all layers decided; nobody runs it.

        `observe` gets every graph on the way from the traced one to what is asked of the program.
        """
        made = self._build(program.path, program.call, program.example, observe)
        propagate_shapes(made.dense, made.example, self.model)
        run_passes(made.dense, made.context, ANALYSIS, observe)
        return made

    def _build(
        self, path: str, call: CallShape, example: list[Tensor], observe: Observer | None
    ) -> Program:
        """A part traced and prepared; shapes and decisions are still missing."""
        traced = trace(self.model, path, call)
        self.untraced.update(traced.untraced)
        if observe is not None:
            with suppress(InputError):  # a call that fails is told of later, in its place
                propagate_shapes(traced.graph_module, example, self.model)
            observe("trace", traced.graph_module)
        model, bank = self.model, self.bank  # not through self: graphs must not keep the engine
        context = Context(
            model,
            self.config,
            lambda decision: bank.obtain(decision, model.get_submodule(decision.name)),
            decisions=self.decisions,
            saved=self.bank.saved,
            decided=self.decided,
        )
        run_passes(traced.graph_module, context, PREPARATION, observe)
        return Program(traced, context, observe, path, call, example)

    def _decide(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Choose the layers of the whole model and make their selectors."""
        programs = self.look(args, kwargs)
        warn_of_idle_rules(self.config, self.decisions.values())
        if not _any_sparse(self.decisions):
            self._report_nothing_sparse()
        self.settle(programs)

    def look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Program]:
        """Decide about every layer from one call; nothing of the model's state changes.

        Returns:
            The parts that ran, in order.
        """
        try:
            programs = [self.program("", args, kwargs)[0]]
        except TraceError as error:
            programs = self._look_around(args, kwargs, str(error))
        programs = list(dict.fromkeys(programs))
        layered = [p for p in programs if any(is_layer(n) for n in p.dense.graph.nodes)]
        for program in programs:
            program.context.last_part = bool(layered) and program is layered[-1]
            run_passes(program.dense, program.context, ANALYSIS, self.observe)
        self._add_unseen()
        return programs

    def _look_around(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str
    ) -> list[Program]:
        """The parts that run in a call of a model that has to run by its own code."""
        # The code may ask for gradients of what it computes; or it may write to what has some,
        # where it would not in training: a dropout in eval mode hands on what it is given.
        with_gradients = torch.is_grad_enabled()
        try:
            return self._profile(args, kwargs, reason, with_gradients)
        except Exception:
            if not with_gradients:
                raise
            with suppress(Exception):
                return self._profile(args, kwargs, reason, False)
            raise

    def _profile(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], reason: str, with_gradients: bool
    ) -> list[Program]:
        self.profiled = []
        try:
            with eval_mode(self.model), torch.set_grad_enabled(with_gradients):
                # Code that changes what it is given is going to do so in the call itself.
                self._begin_own_code("", *copies_of(args, kwargs), reason)
            return self.profiled
        except BaseException:
            self.programs.clear()  # those of the children were not decided about
            raise
        finally:
            self.profiled = None

    def settle(self, programs: list[Program]) -> None:
        """Take the decisions as they are: layers stay sparse or dense from now on."""
        self.decided = True
        self.dense = None if _any_sparse(self.decisions) else StayedDense(self.decisions)
        for program in programs:
            program.context.decided = True
            for decision in self.decisions.values():
                if decision.sparse:
                    program.context.make_selector(decision)
        self.bank.settle(self.model)

    def _report_nothing_sparse(self) -> None:
        """A model whose layers are just too small runs dense and says so; else it is an error."""
        reasons = {site: d.reason for site, d in self.decisions.items()}
        if any(d.too_dear for d in self.decisions.values()):
            warn_user(f"the model runs dense. {no_sparse_layer(reasons)}")
            return
        self.decisions.clear()
        self.programs.clear()
        raise NothingToSparsifyError(no_sparse_layer(reasons), reasons)

    def _add_unseen(self) -> None:
        """Decisions about the layers that are in no graph."""
        for site, decision in self.bank.saved.items():
            rule = self.config.rule_for(decision.name)
            if decision.sparse and not (rule is not None and rule.dense):
                self.decisions.setdefault(site, decision)
        seen = {decision.name for decision in self.decisions.values()}
        for name, module in self.model.named_modules():
            if not isinstance(module, _LAYERS) or name in seen:
                continue
            closed = closed_around(self.model, name)
            reason = f"it is {closed}" if closed else DID_NOT_RUN
            for parent, why in self.untraced.items():
                if parent and f"{name}.".startswith(f"{parent}."):
                    reason = f"it is inside {parent!r}, which stays dense: {why}"
            kind = type(module).__name__
            self.decisions[name] = LayerDecision(name, name, kind, False, reason)


def _any_sparse(decisions: dict[str, LayerDecision]) -> bool:
    return any(decision.sparse for decision in decisions.values())


def _there(method: Callable[..., Any] | None) -> Callable[..., Any]:
    if method is None:
        raise RuntimeError("the module that this belongs to is gone")
    return method


def _run(graph: fx.GraphModule, tensors: list[Tensor]) -> Any:
    run: Callable[..., Any] = named_ranges(graph).run if profiler_is_on() else graph
    return run(*tensors)
