"""Model -> torch.fx graph. What cannot be traced stays a dense leaf, with the reason kept.

`torch.nn` modules are leaves, so BatchNorm and Dropout keep their mode. A module of the user
becomes a leaf as well, and tracing starts again, if its code cannot be traced, does other things in
training than in eval mode, or does what a graph does not repeat: see `tracer.py` and `effects.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

import torch
from torch import fx, nn

from dsgc.errors import TraceError
from dsgc.passes.patterns import has_hooks
from dsgc.tracing.aliases import HiddenWrite, hidden_write
from dsgc.tracing.ambient import ordinary
from dsgc.tracing.blame import explain, is_torch_layer, user_line, where
from dsgc.tracing.call_shape import CallShape
from dsgc.tracing.effects import Undone
from dsgc.tracing.mode_dropout import follow_owner, mode_dropouts
from dsgc.tracing.tracer import Culprit, Recorder, unusable_name

__all__ = ["Traced", "trace"]

# torch.fx patches nn.Module itself while it traces.
_ONE_AT_A_TIME = threading.RLock()


@dataclass
class Traced:
    """A traced module. `untraced` maps the dense leaves of the user to the reason for each.

    `recorded` are the modules whose code is in the graph or that it calls.
    """

    graph_module: fx.GraphModule
    untraced: dict[str, str] = field(default_factory=dict)
    recorded: list[nn.Module] = field(default_factory=list)


def trace(model: nn.Module, path: str, call: CallShape) -> Traced:
    """Trace the submodule `path` of `model` ("" is the model itself) as it is called by `call`.

    Targets in the graph are qualified from `model`, whose tensors the graph module shares. Nothing
    of the model, of the modes of this thread or of random generators changes.

    Raises:
        TraceError: the code of the module `path` itself cannot be traced; says where and why.
    """
    root = model.get_submodule(path)
    wrong = unusable_name(path) if path else ""
    if wrong:
        raise TraceError(wrong)
    if path and is_torch_layer(root):
        alone = fx.GraphModule(model, _call_alone(path, call), class_name="DenseGraph")
        return Traced(alone, recorded=[root])
    if path and has_hooks(root):
        raise TraceError(f"{path} has hooks, which run with the module's own code only")
    with _ONE_AT_A_TIME:
        return _Attempts(model, path, call).until_one_succeeds()


def _call_alone(path: str, call: CallShape) -> fx.Graph:
    """A graph that calls one module of torch.nn."""
    graph = fx.Graph()
    args, kwargs = call.arguments([graph.placeholder(s) for s in call.slots if s is not None])
    graph.output(graph.call_module(path, args, kwargs))
    return graph


@dataclass
class _Recording:
    """One run of a module's code, and the constants of its graph."""

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    entered: list[nn.Module]

    def dropouts(self, other: _Recording) -> list[fx.Node] | None:
        """The functional dropouts in which alone two recordings differ; else None."""
        if self.constants.keys() != other.constants.keys() or not all(
            _equal(value, other.constants[name]) for name, value in self.constants.items()
        ):
            return None
        return mode_dropouts(self.graph, other.graph)

    def same(self, other: _Recording) -> bool:
        return self.dropouts(other) is not None


def _equal(one: object, other: object) -> bool:
    if not isinstance(one, torch.Tensor) or not isinstance(other, torch.Tensor):
        return one is other
    if one.dtype != other.dtype or one.shape != other.shape or one.device != other.device:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


class _Attempts:
    """Traces one module again and again, with one more leaf each time, until that succeeds."""

    def __init__(self, model: nn.Module, path: str, call: CallShape) -> None:
        self.model, self.path, self.call = model, path, call
        self.root = model.get_submodule(path)
        self.names = {module: name for name, module in model.named_modules()}
        self.untraced: dict[nn.Module, str] = {}

    def until_one_succeeds(self) -> Traced:
        while True:
            try:
                recording, dropouts = self._all_modes()
            except Culprit as found:
                if found.module is self.root:
                    name = self.path or type(self.root).__name__
                    reason = found.reason.removeprefix("cannot be traced: ")
                    raise TraceError(f"{name} cannot be traced: {reason}") from found
                self.untraced[found.module] = found.reason
                continue
            return self._finish(recording, dropouts)

    def _finish(self, recording: _Recording, dropouts: list[fx.Node]) -> Traced:
        for node in recording.graph.nodes:
            if node.op == "get_attr" and self.path:
                node.target = f"{self.path}.{node.target}"
        _copy_results(recording.graph)
        with _holding(self.root, recording.constants):
            result = fx.GraphModule(self.model, recording.graph, class_name="DenseGraph")
        called = [
            self.model.get_submodule(str(node.target))
            for node in recording.graph.nodes
            if node.op == "call_module"
        ]
        for node in dropouts:
            follow_owner(result, node, self.model, self.path)
        result.recompile()
        untraced = {self.names[module]: reason for module, reason in self.untraced.items()}
        return Traced(result, untraced, list(dict.fromkeys([*recording.entered, *called])))

    def _all_modes(self) -> tuple[_Recording, list[fx.Node]]:
        """In training and in eval mode, with and without gradients and autocast: all one graph."""
        recording = self._record(set())
        entered = sorted(recording.entered, key=self._depth, reverse=True)
        dropouts = recording.dropouts(self._record(set(self.model.modules())))
        if dropouts is None:
            for module in entered:
                if not recording.same(self._record({module})):
                    break
            what = "its forward does other things in training than in eval mode"
            raise Culprit(module, f"{what} {where(module)}")
        if not recording.same(self._record(set(), turned=self.root)):
            for module in entered:
                if not recording.same(self._record(set(), turned=module)):
                    break
            what = "its forward does other things without gradients or under autocast"
            raise Culprit(module, f"{what} {where(module, 'is_grad_enabled|autocast')}")
        return recording, dropouts

    def _depth(self, module: nn.Module) -> int:
        name = self.names[module]
        return name.count(".") + 1 if name else 0

    def _record(self, evaluating: set[nn.Module], turned: nn.Module | None = None) -> _Recording:
        """One run; a second, slower one finds the module where the first did more than compute."""
        recording = self._run(evaluating, turned, blaming=False)
        return recording or self._run(evaluating, turned, blaming=True) or self._unexplained()

    def _run(
        self, evaluating: set[nn.Module], turned: nn.Module | None, blaming: bool
    ) -> _Recording | None:
        with _modes(self.model, evaluating), ordinary(), Undone(self.model) as effects:
            names, leaves = self.names, set(self.untraced)
            recorder = Recorder(names, leaves, self.call, turned, effects if blaming else None)
            try:
                graph = recorder.trace(self.root)
            except Exception as error:
                if recorder.culprit is not None:
                    raise recorder.culprit from None
                module, reason = explain(error, self.root, set(self.names))
                raise Culprit(module, f"cannot be traced: {reason}") from error
            if recorder.culprit is not None:
                raise recorder.culprit
            if effects.effect()[0]:
                return None
            if (found := hidden_write(graph, recorder.modules)) is not None:
                self._blame_for(found, recorder)
            return _Recording(graph, _constants(self.root, graph), recorder.entered)

    def _blame_for(self, write: HiddenWrite, recorder: Recorder) -> NoReturn:
        # Whoever writes to an argument of the root would get a copy of it, were it a leaf.
        at_fault = self.root if write.of_argument else recorder.makers.get(write.node, self.root)
        line = user_line(write.node)
        place = f"({line})" if line else where(at_fault)
        raise Culprit(at_fault, f"its forward changes {write.changed} {place}")

    def _unexplained(self) -> _Recording:
        raise Culprit(self.root, "its forward does not do the same every time")


def _copy_results(graph: fx.Graph) -> None:
    """Give constants out as copies: who gets one may write to it."""
    (output,) = graph.find_nodes(op="output")
    for node in output.all_input_nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_const"):
            with graph.inserting_before(output):
                output.replace_input_with(node, graph.call_method("clone", (node,)))


def _constants(root: nn.Module, graph: fx.Graph) -> dict[str, torch.Tensor]:
    """The tensors that torch.fx met in the code and put on the root."""
    found = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    return {k: v for k, v in root.__dict__.items() if k in found and k.startswith("_tensor_const")}


@contextmanager
def _holding(root: nn.Module, constants: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within, the constants are attributes of the root, for a graph module to take them over."""
    root.__dict__.update(constants)
    try:
        yield
    finally:
        for name in constants:
            del root.__dict__[name]


@contextmanager
def _modes(model: nn.Module, evaluating: set[nn.Module]) -> Iterator[None]:
    """All modules in training mode but those in `evaluating`; what was is restored."""
    before = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in before:
            module.training = module not in evaluating
        yield
    finally:
        for module, mode in before:
            module.training = mode
