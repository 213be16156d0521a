"""Note the shape and dtype of every tensor in the graph, by running it on fake tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import product
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dsgc.errors import InputError
from dsgc.passes.patterns import HOOKS, addends, has_hooks
from dsgc.tracing.effects import Undone

__all__ = ["ShapeRecorder", "depends_on_batch", "eval_mode", "fake_inputs", "propagate_shapes"]


class ShapeRecorder(fx.Interpreter):
    """Runs a graph and notes the shape and dtype of every tensor in `node.meta`."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = tuple(int(d) for d in result.shape)
            n.meta["dtype"] = result.dtype
        return result


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode, without gradients, leaving no trace in modes or generators.

    What the user's own code does to attributes and buffers is undone as well.
    """
    before = [(module, module.training) for module in model.modules()]
    # Autocast must not remember the fake copies of weights for later.
    caching = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        for module, _ in before:
            module.training = False
        with torch.no_grad(), Undone(model):
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)
        for module, mode in before:
            module.training = mode


def fake_inputs(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors with the shapes, dtypes and devices of `inputs` and no data; fake ones as they are.

    All come of one mode, in which models with real parameters may run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return [
        tensor if isinstance(tensor, FakeTensor) else mode.from_tensor(tensor) for tensor in inputs
    ]


def _mode_of(inputs: Sequence[torch.Tensor]) -> AbstractContextManager[object]:
    """The mode that fake inputs need; nothing for real ones."""
    fake = next((tensor for tensor in inputs if isinstance(tensor, FakeTensor)), None)
    return nullcontext() if fake is None else fake.fake_mode


def _spared(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What the user's own code may write to: fake inputs, and copies of real ones."""
    return [
        x if isinstance(x, FakeTensor) else x.detach().clone().requires_grad_(x.requires_grad)
        for x in inputs
    ]


@contextmanager
def _without_hooks(model: nn.Module) -> Iterator[None]:
    """Call no hooks: they would see fake tensors, and one call more than there is."""
    hooked = [
        (module, name, module.__dict__[name])
        for module in model.modules()
        for name in HOOKS
        if module.__dict__[name]
    ]
    try:
        for module, name, hooks in hooked:
            module.__dict__[name] = type(hooks)()
        yield
    finally:
        for module, name, hooks in hooked:
            module.__dict__[name] = hooks


@contextmanager
def _failing_quietly() -> Iterator[None]:
    """Keep torch from logging a traceback for an operator that rejects fake tensors."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def propagate_shapes(
    gm: fx.GraphModule,
    inputs: Sequence[torch.Tensor],
    model: nn.Module,
    *,
    instead: Sequence[torch.Tensor] | None = None,
) -> Any:
    """Write `shape` and `dtype` into `node.meta` for a call with `inputs`; returns the result.

    Fake tensors (see `fake_inputs`) cost nothing; a dense leaf whose code depends on data needs
    real ones, so a second attempt is made with those in `instead`. Forward hooks are called only
    if it cannot be done without.

    Raises:
        InputError: the model does not accept inputs of these shapes.
    """
    hooked = any(has_hooks(module) for module in model.modules())
    given = [inputs] if instead is None else [inputs, instead]
    *attempts, (inputs, _) = product(given, (True, False) if hooked else (False,))
    attempts.sort(key=lambda attempt: not attempt[1])
    with eval_mode(model):
        for tensors, bare in attempts:
            # Any code of the user may fail on fake tensors, or without its hooks.
            hooks = _without_hooks(model) if bare else nullcontext()
            with suppress(Exception), _failing_quietly(), _mode_of(tensors), hooks:
                return ShapeRecorder(gm).run(*_spared(tensors))
        try:
            with _mode_of(inputs):
                return ShapeRecorder(gm).run(*_spared(inputs))
        except Exception as error:
            shapes = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in inputs)
            raise InputError(
                f"the dense model itself rejects inputs of {shapes}: "
                f"{type(error).__name__}: {error}"
            ) from error


def depends_on_batch(gm: fx.GraphModule, inputs: Sequence[torch.Tensor], model: nn.Module) -> bool:
    """Whether a graph, whose shapes are known for `inputs`, may serve batches of their size only.

    That is so if with another size more changes than the first extent of its values (as where
    sequences come first), or if maps that are added no longer have one shape. Where it cannot be
    told the answer is yes.

    Args:
        gm: has shapes in its nodes, and keeps them.
        inputs: fake ones, see `fake_inputs`.
        model: whose modules the graph calls.
    """
    known = [(node, dict(node.meta)) for node in gm.graph.nodes]
    summed = [node for node, _ in known if addends(node)]
    try:
        with eval_mode(model), _failing_quietly(), _mode_of(inputs), _without_hooks(model):
            ShapeRecorder(gm).run(*_of_another_batch(inputs))
        return not all(map(addends, summed)) or any(
            _but_first(node.meta) != _but_first(before) for node, before in known
        )
    except Exception:  # any code of the user may refuse another batch, or fake tensors
        return True
    finally:
        for node, before in known:
            node.meta = before


def _of_another_batch(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Like `inputs`, with other first extents: 1, which may have rules of its own, or else 2."""
    batch = next((len(x) for x in inputs if x.dim()), 0)
    size = 2 if batch == 1 else 1
    other = {1: 1, batch: size}
    return [
        x.new_empty((other.get(len(x), len(x) + 1), *x.shape[1:])) if x.dim() else x for x in inputs
    ]


def _but_first(meta: dict[str, Any]) -> tuple[int, ...] | None:
    """A value's number of dimensions and all its extents but the first."""
    shape = meta.get("shape")
    return None if shape is None else (len(shape), *shape[1:])
