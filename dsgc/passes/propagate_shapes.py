"""Note the shape and dtype of every tensor in the graph, by running it on fake tensors."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dsgc.errors import InputError

__all__ = ["eval_mode", "propagate_shapes"]


class _Recorder(fx.Interpreter):
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            n.meta["shape"] = tuple(int(d) for d in result.shape)
            n.meta["dtype"] = result.dtype
        return result


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Run the body in eval mode, without gradients, leaving no trace in modes or generators."""
    before = [(module, module.training) for module in model.modules()]
    # Autocast must not remember the fake copies of weights for later.
    caching = torch.is_autocast_cache_enabled()
    try:
        torch.set_autocast_cache_enabled(False)
        for module, _ in before:
            module.training = False
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_autocast_cache_enabled(caching)
        for module, mode in before:
            module.training = mode


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
    gm: fx.GraphModule, inputs: Sequence[torch.Tensor], model: nn.Module, *, real: bool = False
) -> Any:
    """Write `shape` and `dtype` into `node.meta` for a call with `inputs`; returns the result.

    Fake tensors cost nothing; a dense leaf whose code depends on data needs real ones, which is
    tried second. With `real` the graph runs on `inputs` themselves.

    Raises:
        InputError: the model does not accept inputs of these shapes.
    """
    recorder = _Recorder(gm)
    recorder.extra_traceback = False
    with eval_mode(model):
        if not real:
            try:
                with _failing_quietly(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
                    fakes = [mode.from_tensor(tensor) for tensor in inputs]
                    return recorder.run(*fakes)
            except Exception:  # any code of the user may fail on fake tensors: real ones decide
                recorder = _Recorder(gm)
                recorder.extra_traceback = False
        try:
            return recorder.run(*inputs)
        except Exception as error:
            shapes = ", ".join(f"{tuple(t.shape)} {t.dtype} on {t.device}" for t in inputs)
            raise InputError(
                f"the dense model itself rejects inputs of {shapes}: "
                f"{type(error).__name__}: {error}"
            ) from error
