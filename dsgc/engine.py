"""Builds and runs the graphs of a sparse module, for the calls and shapes that it meets."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsgc.bank import SelectorBank
from dsgc.config import SparsityConfig
from dsgc.errors import KernelError, NothingToSparsifyError, TraceError, UnsupportedError
from dsgc.passes.choose_layers import is_layer
from dsgc.passes.context import Context, LayerDecision
from dsgc.passes.pipeline import ANALYSIS, LOWERING, PREPARATION, SEMANTIC, run_passes
from dsgc.passes.propagate_shapes import eval_mode, propagate_shapes
from dsgc.skeleton import Skeletons
from dsgc.trace import CallShape, Traced, trace

__all__ = ["Engine", "Program"]

_LAYERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
    nn.Linear,
)  # fmt: skip


class Program:
    """The graphs of one part of a model for one kind of call and shape."""

    def __init__(self, dense: fx.GraphModule, context: Context, dump: Path | None) -> None:
        self.dense = dense
        self.context = context
        self.dump = dump
        self._semantic: fx.GraphModule | None = None
        self._lowered: dict[str, fx.GraphModule] = {}

    @property
    def semantic(self) -> fx.GraphModule:
        """The graph on dense tensors and masks."""
        if self._semantic is None:
            self._semantic = run_passes(self.dense, self.context, SEMANTIC, self.dump)
        return self._semantic

    def lowered(self, namespace: str) -> fx.GraphModule:
        """The graph on packed values, with the kernels of `namespace`."""
        if namespace not in self._lowered:
            semantic = self.semantic
            self.context.namespace = namespace
            self._lowered[namespace] = run_passes(semantic, self.context, LOWERING, self.dump)
        return self._lowered[namespace]


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
        self.backend = backend
        self.untraced = untraced
        self.config = config
        self.decisions = decisions
        self.decided = bool(decisions)
        self.skeletons = Skeletons(model, self.call_part)
        self.programs: dict[tuple[object, ...], Program] = {}
        self.traced: dict[tuple[object, ...], Traced] = {}
        self.profiled: list[Program] | None = None
        self.last: tuple[Program, str | None] | None = None
        self.fallback = ""
        self._warned = False
        self._without_kernels = ""
        place = os.environ.get("DSGC_DUMP")
        self.dump = Path(place) if place else None

    # Running

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Choose the layers if that has not been done, from the shapes of this call."""
        if not self.decided:
            self._decide(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the model on the graphs for this call.

        Where no layer became sparse, or none is yet, there is nothing to gain from graphs: after
        the first call, which leaves one to look at, the model runs as it is.
        """
        dense = self.bank.dense_now or not self._any_sparse()
        if self.last is not None and self.profiled is None and dense:
            return self.model(*args, **kwargs)
        return self.call_part("", args, kwargs)

    def _any_sparse(self) -> bool:
        return any(decision.sparse for decision in self.decisions.values())

    def call_part(self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the submodule `path`: as a graph, or by its own code around graphs."""
        if not self.skeletons.has(path):
            try:
                program, tensors = self.program(path, args, kwargs)
            except TraceError as error:
                self.untraced[path] = str(error)
                self.skeletons.make(path)
            else:
                if self.profiled is not None:
                    self.profiled.append(program)
                    return propagate_shapes(program.dense, tensors, self.model, real=True)
                return self.execute(program, tensors)
        return self.skeletons.call(path, args, kwargs)

    def execute(self, program: Program, tensors: list[Tensor]) -> Any:
        """Run the graph of a program that the backend asks for."""
        namespace = self.namespace_for(tensors)
        self.last = (program, namespace)
        if namespace is None:
            return program.semantic(*tensors)
        lowered = program.lowered(namespace)
        if not torch.is_autocast_enabled("cpu"):
            return lowered(*tensors)
        if not self._warned:
            self._warned = True
            warnings.warn(
                "dsgc: packed kernels compute in float32; autocast is ignored inside the sparse "
                'module (compile with backend="reference" to honour it)',
                UserWarning,
                stacklevel=4,
            )
        with torch.autocast("cpu", enabled=False):
            return lowered(*(t.float() if t.is_floating_point() else t for t in tensors))

    def namespace_for(self, tensors: list[Tensor]) -> str | None:
        """The kernels for these inputs; None is the semantic graph in plain PyTorch."""
        if self.backend == "reference":
            return None
        obstacle = self._obstacle(tensors) or self._without_kernels
        if not obstacle:
            try:
                _load_kernels()
                return "dsgc_cpu"
            except KernelError as error:
                if self.backend == "tvm":
                    raise
                obstacle = self._without_kernels = str(error)
                warnings.warn(
                    f"dsgc: running in plain PyTorch, no faster than dense: {error}",
                    UserWarning,
                    stacklevel=5,
                )
        if self.backend == "tvm":
            raise UnsupportedError(
                f'backend="tvm" cannot run this: {obstacle}; use backend="auto" or "reference"'
            )
        self.fallback = obstacle
        return None

    def _obstacle(self, tensors: list[Tensor]) -> str:
        mixed = torch.is_autocast_enabled("cpu")
        allowed = (torch.float32, torch.bfloat16, torch.float16) if mixed else (torch.float32,)
        for i, tensor in enumerate(tensors):
            if tensor.device.type != "cpu":
                return f"input {i} is on {tensor.device}, generated kernels run on the CPU"
            if tensor.is_floating_point() and tensor.dtype not in allowed:
                return f"input {i} is {tensor.dtype}, generated kernels compute in float32"
        for name, parameter in self.model.named_parameters():
            if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                where = f"{parameter.dtype} on {parameter.device}"
                return f"parameter {name} is {where}, generated kernels work on float32 on the CPU"
        return ""

    # Building

    def program(
        self, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Program, list[Tensor]]:
        """The program of a part for this call, and the tensors to run it with."""
        call, tensors = CallShape.of(self.model.get_submodule(path), args, kwargs)
        shapes = tuple((t.shape[1:], t.dim(), t.dtype, t.device) for t in tensors)
        key = (path, *call.key, shapes)
        if key in self.programs:
            return self.programs[key], tensors
        traced = trace(self.model, path, call)
        self.untraced.update(traced.untraced)
        context = Context(
            self.model,
            self.config,
            lambda decision: self.bank.obtain(decision, self.model.get_submodule(decision.name)),
            decisions=self.decisions,
            decided=self.decided,
        )
        program = Program(traced.graph_module, context, self.dump)
        run_passes(program.dense, context, PREPARATION, self.dump)
        if self.profiled is None:
            propagate_shapes(program.dense, tensors, self.model)
        if self.decided:
            run_passes(program.dense, context, ANALYSIS, self.dump)
        self.programs[key] = program
        return program, tensors

    def _decide(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Choose the layers of the whole model from one call; nothing of its state changes."""
        programs: list[Program] = []
        try:
            programs.append(self.program("", args, kwargs)[0])
        except TraceError as error:
            self.untraced[""] = str(error)
            self.skeletons.make("")
            self.profiled = programs
            try:
                with eval_mode(self.model):
                    self.skeletons.call("", args, kwargs)
            finally:
                self.profiled = None
        programs = list(dict.fromkeys(programs))
        layered = [p for p in programs if any(is_layer(n) for n in p.dense.graph.nodes)]
        for program in programs:
            program.context.last_part = bool(layered) and program is layered[-1]
            run_passes(program.dense, program.context, ANALYSIS, self.dump)
        self._add_unseen()
        if not any(d.sparse for d in self.decisions.values()):
            self._report_nothing_sparse()
        self.decided = True
        for program in programs:
            program.context.decided = True
            for decision in self.decisions.values():
                if decision.sparse:
                    program.context.make_selector(decision)
        self.bank.share_out(self.decisions)

    def _report_nothing_sparse(self) -> None:
        """A model whose layers are just too small runs dense and says so; else it is an error."""
        reasons = {site: d.reason for site, d in self.decisions.items()}
        if any(d.too_dear for d in self.decisions.values()):
            warnings.warn(
                f"dsgc: the model runs dense. {_nothing(reasons)}", UserWarning, stacklevel=4
            )
            return
        self.decisions.clear()
        self.programs.clear()
        raise NothingToSparsifyError(_nothing(reasons), reasons)

    def _add_unseen(self) -> None:
        """Decisions about the layers that are in no graph."""
        seen = {decision.name for decision in self.decisions.values()}
        for name, module in self.model.named_modules():
            if not isinstance(module, _LAYERS) or name in seen:
                continue
            reason = "it did not run when the layers were chosen"
            for parent, why in self.untraced.items():
                if parent and f"{name}.".startswith(f"{parent}."):
                    reason = f"it is inside {parent!r}, which stays dense: {why}"
            kind = type(module).__name__
            self.decisions[name] = LayerDecision(name, name, kind, False, reason)


def _load_kernels() -> None:
    """Register the generated kernels; tvm is imported here at the earliest."""
    try:
        from dsgc.codegen import cpu_kernels
    except ImportError as error:
        raise KernelError(f"generated kernels need apache-tvm: {error}") from error
    cpu_kernels()


def _nothing(reasons: dict[str, str]) -> str:
    lines = [f"  {site or 'the model'}: {reason}" for site, reason in reasons.items()]
    listed = "\n".join(lines) if lines else "  the model has no convolution and no linear layer"
    return (
        "No layer was made sparse; a rule with a sparsity of its own makes a layer sparse "
        f"whatever it costs. Reasons:\n{listed}"
    )
