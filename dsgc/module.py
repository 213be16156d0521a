"""The sparse module that `dsgc.compile` gives back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, fx, nn

from dsgc.acceptable import check_values
from dsgc.bank import SelectorBank
from dsgc.config import SparsityConfig
from dsgc.engine import Engine
from dsgc.errors import InputError, ShapesUnknownError, TraceError, UnsupportedError
from dsgc.passes.context import LayerDecision
from dsgc.passes.patterns import extra_code
from dsgc.program import Program
from dsgc.seen import leaves_of
from dsgc.select import refuse_recomputation
from dsgc.stand_in import StandIn, Structure

if TYPE_CHECKING:
    from dsgc.inspect.report import Report
    from dsgc.inspect.view import GraphView, Record

__all__ = ["SparseModule"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SIMPLE = (int, float, complex, str, bytes, type(None))  # what holds no tensor
_BATCH_NORMS = (nn.modules.batchnorm._BatchNorm,)


def _refresh_after_load(module: nn.Module, incompatible: object) -> None:
    if isinstance(module, SparseModule):
        module._bank.resume(module._dense[0])
        if not module._decisions:
            module._structure_changed()


class SparseModule(StandIn):
    """A model that computes only the neurons that matter for each input.

    It shares its parameters with the dense model, under the same names, and has its own copies of
    the buffers. Selectors are registered as `dsgc_selectors`. Graphs are built for the shapes met;
    any batch size fits, another image size is built anew for the same sparse layers.

    Made by `dsgc.compile`.
    """

    def __init__(self, model: nn.Module, config: SparsityConfig, backend: str) -> None:
        """`model` becomes part of this module: pass a copy (`dsgc.compile` does)."""
        bank = SelectorBank(config)
        super().__init__(model, {"dsgc_selectors": bank})
        self._config = config
        self._backend = backend
        self._untraced: dict[str, str] = {}
        self._built: Engine | None = None
        self._structure: Structure | None = None
        self._bank_of = (bank,)
        self._decisions = bank.decisions
        bank.train(model.training)
        self.register_load_state_dict_post_hook(_refresh_after_load)  # type: ignore[no-untyped-call]
        self._stands = True

    @property
    def _bank(self) -> SelectorBank:
        return self._bank_of[0]

    def _same_modules(self) -> bool:
        return self._structure is not None and self._structure.has_same_modules()

    @property
    def _engine(self) -> Engine:
        if self._structure is not None and not self._structure.holds():
            self._structure_changed()
        if self._built is None:
            self._bank.adopt(self._dense[0])
            self._structure = Structure(self._dense[0])
            self._built = Engine(
                self._dense[0],
                self._config,
                self._bank,
                self._decisions,
                self._untraced,
                self._backend,
            )
        return self._built

    # What the user can ask

    @property
    def config(self) -> SparsityConfig:
        """The settings that the module was compiled with."""
        return self._config

    @property
    def backend(self) -> str:
        """ "tvm" or "reference": what ran last; before the first call, what was asked for."""
        if self._built is None or self._built.last is None:
            return self._backend
        return "reference" if self._built.last[1] is None else "tvm"

    @property
    def decisions(self) -> Mapping[str, LayerDecision]:
        """For every convolution and linear layer whether it is sparse, and why.

        Raises:
            ShapesUnknownError: no input was seen yet.
        """
        if not self._decisions:
            raise ShapesUnknownError(_unknown("which layers are sparse is decided"))
        layers, found = self._bank.layers, dict(self._decisions)
        for site, decision in found.items():
            layer = layers.get(site)
            if decision.sparse and layer is not None and (extra := extra_code(layer)):
                found[site] = replace(decision, sparse=False, reason=extra)
        return found

    @property
    def untraced(self) -> Mapping[str, str]:
        """The submodules whose code is not in a graph, with the reason; "" is the model itself."""
        return dict(self._untraced)

    @property
    def semantic_graph(self) -> fx.GraphModule:
        """The graph that defines the results, on dense tensors and masks, as last used.

        Raises:
            ShapesUnknownError: no input was seen yet.
            TraceError: the model is not one graph, because its own code cannot be traced.
        """
        return self.last_program()[0].semantic

    @property
    def lowered_graph(self) -> fx.GraphModule:
        """The graph on packed values, as last used; reference kernels if these ran last.

        Raises:
            ShapesUnknownError: no input was seen yet.
            TraceError: the model is not one graph, because its own code cannot be traced.
        """
        program, namespace = self.last_program()
        return program.lowered(namespace or "dsgc")

    def last_program(self) -> tuple[Program, str | None]:
        """The graphs that ran last, and the namespace of their kernels; None if none did.

        Raises:
            ShapesUnknownError: no input was seen yet.
            TraceError: the model is not one graph, because its own code cannot be traced.
        """
        if self._built is not None and self._built.own_code:
            raise TraceError(
                f"there is no single graph of the model: {self._built.own_code}; its children are "
                "compiled each for itself"
            )
        if self._built is None or self._built.last is None:
            raise ShapesUnknownError(_unknown("graphs are built"))
        return self._built.last

    def record(self) -> Record:
        """The graph after every pass, for the last call: compiled once more to be looked at.

        Raises:
            ShapesUnknownError: no input was seen yet.
            TraceError: the model is not one graph, because its own code cannot be traced.
        """
        from dsgc.inspect.view import record

        return record(self)

    def graph(self, name: str = "lowered") -> GraphView:
        """A graph to look at: "semantic", "lowered", "dense" (as traced), or a pass's name.

        Raises:
            UnknownGraphError: there is no such pass.
            ShapesUnknownError, TraceError: see `record`.
        """
        return self.record()[name]

    def report(
        self,
        *args: Any,
        rounds: int = 5,
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> Report:
        """Measure every layer beside the dense one: time, search, bytes kept, sparsity, load.

        Runs both models in turn, node by node, in the present mode: forward and backward in
        training mode, forward in eval mode. Nothing of the module's state changes.

        Args:
            args, kwargs: inputs of the model; without any, those of the last call, if they still
                exist.
            rounds: counted runs of each.
            progress: gets the rounds done and those to do.

        Raises:
            InputError: there are no inputs, or `rounds` is not positive.
            NothingToSparsifyError: no layer is sparse.
        """
        from dsgc.inspect.report import report

        if type(rounds) is not int or rounds < 1:
            raise InputError(f"rounds={rounds} is not possible: at least 1")
        args, kwargs = self._given_or_seen(args, kwargs)
        return report(self, args, kwargs, rounds=rounds, progress=progress)

    def _given_or_seen(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs given, or those of the last call."""
        if args or kwargs:
            return args, kwargs
        seen = self._engine.seen.arguments()
        if seen is None:
            raise InputError(
                "no inputs: the module was not called yet, or what it was called with is gone; "
                "pass a batch"
            )
        return seen

    @contextmanager
    def hold_selection(self) -> Iterator[None]:
        """Within, the first selection of every layer is kept and used again by both graphs.

        For comparing graphs and for finite differences, where a selection must not move.
        """
        with self._bank.hold():
            yield

    def selections(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Which blocks every sparse layer selects for these inputs, run once in eval mode.

        Returns:
            By layer (as in `decisions`), bool masks [N, blocks, H, W] of the layer's output; linear
            layers have a position a row, [rows, blocks, 1, 1].

        Raises:
            The same as `forward`.
        """
        with self.in_eval_mode(*args, **kwargs), torch.no_grad(), self._bank.hold():
            self(*args, **kwargs)
            return self._bank.held(self._decisions)

    @contextmanager
    def in_eval_mode(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Within, all is in eval mode; every submodule's own mode comes back afterwards.

        Given a call, layers that were not chosen yet are chosen by it, for the mode before.
        """
        if args or kwargs:
            self._engine.prepare(args, kwargs)
        before = [(module, module.training) for module in (self, *self._dense[0].modules())]
        bank = self._bank.training
        self.eval()
        try:
            yield
        finally:
            self._bank.train(bank)  # also the selectors that were made within
            for module, mode in before:
                module.training = mode

    def to_dense(self) -> nn.Module:
        """A dense model of the original class with these parameters and copies of the buffers."""
        return self._copied_model()

    # What torch asks

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model; in training mode this is one step of schedule and refresh.

        Raises:
            InputError: no tensor among the inputs, an empty batch for batch statistics, or a
                shape that the dense model rejects as well.
            UnsupportedError: the dtype or device is not supported by the backend asked for, weights
                have no values yet, or the module is run again within a backward pass (activation
                checkpointing).
            NothingToSparsifyError: no layer is worth it (first call only).
        """
        if torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting():
            # Graphs and kernels are dsgc's own: what torch.compile makes breaks around the module.
            aside: Callable[..., Any] = torch.compiler.disable(self._run)  # type: ignore[no-untyped-call]
            return aside(*args, **kwargs)
        return self._run(*args, **kwargs)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, never compiled by torch."""
        built = self._built
        dense = None if built is None else built.dense
        if built and dense and dense.suits(built, args, kwargs) and self._same_modules():
            return dense.run(built, args)
        self._check(args, kwargs)
        if not self._decisions or self._built is None:
            check_values(self._dense[0])
        if torch._C._functorch.peek_interpreter_stack() is not None:
            raise UnsupportedError(
                "a sparse module was called within a transform of torch.func (grad, vmap, jvp or "
                "another), which would not see what its kernels do: use backward or "
                "torch.autograd.grad, or the transform on to_dense()"
            )
        engine = self._engine
        engine.prepare(args, kwargs)
        if not self.training:
            self._bank.follow()
            return engine.run(args, kwargs)
        refuse_recomputation("the sparse module")
        self._bank.advance()
        try:
            return engine.run(args, kwargs)
        except BaseException:
            self._bank.withdraw()
            raise

    def _prepare(self, args: tuple[Any, ...]) -> None:
        """Build everything for these inputs without running the model."""
        self._check(args, {})
        check_values(self._dense[0])
        self._engine.prepare(args, {})
        if not self._engine.own_code:
            program, tensors = self._engine.program("", args, {})
            self._engine.last = (program, self._engine.backend.namespace_for(tensors))

    def _check(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = leaves_of(args, kwargs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not tensors and all(isinstance(leaf, _SIMPLE) for leaf in leaves):
            given = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
            raise InputError(f"the model was called without a tensor (got {given})")
        empty = bool(tensors)
        for i, tensor in enumerate(tensors):
            dtype = tensor.dtype
            if dtype not in _FLOATS and (dtype.is_floating_point or dtype.is_complex):
                allowed = ", ".join(str(dtype) for dtype in _FLOATS)
                raise UnsupportedError(f"input {i} is {dtype}; supported are {allowed}")
            empty = empty and not (tensor.dim() and tensor.numel())
        if empty:
            self._check_empty(tensors)

    def _check_empty(self, tensors: list[Tensor]) -> None:
        batched = [tensor for tensor in tensors if tensor.dim()]
        if batched and all(t.shape[0] == 0 for t in batched) and self._needs_statistics():
            raise InputError(
                f"an empty batch was given, of shape {tuple(batched[0].shape)}: BatchNorm has "
                "no statistics of nothing; call eval() first, or leave empty batches out"
            )

    def _needs_statistics(self) -> bool:
        modules = self._dense[0].modules()
        return any(isinstance(m, _BATCH_NORMS) and m.training for m in modules)

    def train(self, mode: bool = True) -> Self:
        """As in torch; going to eval mode projects the current weights for the selectors."""
        if not isinstance(mode, bool):
            raise ValueError("training mode is expected to be boolean")
        self.training = mode
        self._dense[0].train(mode)
        self._bank.train(mode)
        if not mode:
            self._bank.follow()
            self._bank.refresh_unless_same()
        if self._built is not None:
            self._built.inference.forget() if mode else self._built.inference.verify()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._built = self._structure = None
        self._bank.refresh()
        return self

    def _structure_changed(self) -> None:
        """Layers are chosen anew at the next call; those that are still there stay as they were."""
        self._bank.forget(self._dense[0])
        self._untraced.clear()
        self._built = self._structure = None

    def __getstate__(self) -> dict[str, Any]:
        """Graphs are never copied or saved: they are built again."""
        return {**self.__dict__, "_built": None, "_structure": None}


def _unknown(what: str) -> str:
    return (
        f"{what} when the first input is seen: call the module once, or pass "
        "example_inputs to dsgc.compile"
    )
