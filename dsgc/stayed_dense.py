"""Models none of whose layers became sparse: they run as they are, with little around them.

Where most of the time would be spent between layers, a program is faster still: a call of a small
layer in PyTorch takes longer than its multiply-adds.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dsgc.errors import TraceError
from dsgc.seen import has_only_tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dsgc.engine import Engine
    from dsgc.passes.context import LayerDecision
    from dsgc.programs.live import LiveProgram

__all__ = ["StayedDense"]

_SMALL = 50_000_000  # multiply-adds of a call, up to which programs are faster


class StayedDense:
    """Runs an engine's model, of whose layers `decisions` says that none is sparse.

    A perceptron may take less time than what is done here, so that is done without detours.
    """

    def __init__(self, decisions: Mapping[str, LayerDecision]) -> None:
        layers = decisions.values()
        self._macs = sum(layer.macs for layer in layers)
        linear = sum(layer.macs for layer in layers if layer.kind == "Linear")
        # A small linear layer is one quick call of PyTorch's.
        self._may_be_small = 2 * linear <= self._macs <= _SMALL

    def suits(self, engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call can do without all that sparse layers need: a graph was left to look at,
        and the inputs are tensors with something in them.
        """
        if engine.last is None or not args or not has_only_tensors(args, kwargs):
            return False
        return all(map(Tensor.numel, args))

    def run(self, engine: Engine, args: tuple[Tensor, ...]) -> Any:
        """The results of a call that suits."""
        me = get_ident()
        engine.gate.enter(me)
        try:
            found = self._program(engine, args) if self._may_be_small else None
            return engine.model(*args) if found is None else engine.inference.run(found, args)
        finally:
            engine.gate.leave(me)

    def _program(self, engine: Engine, args: tuple[Tensor, ...]) -> LiveProgram | None:
        """The program for a call; None where there is none, or where PyTorch is as fast."""
        if engine.last is None or engine.model.training:
            return None
        (program, ran_on), inputs = engine.last, list(args)
        # Multiply-adds are known for the shapes that layers were chosen for.
        if [x.shape[1:] for x in inputs] != [x.shape[1:] for x in program.example]:
            return None
        samples = max((x.shape[0] for x in inputs if x.dim()), default=0)
        if self._macs * samples > _SMALL or torch.is_autocast_enabled("cpu"):
            return None
        if ran_on is None or engine.inference.refuses(program.lowered(ran_on)):
            return None
        namespace = engine.backend.namespace_for(inputs)
        if namespace is None or not engine.inference.is_wanted(inputs):
            return None
        try:
            program, _ = engine.program("", args, {})
        except TraceError:
            return None
        return engine.inference.program(program.lowered(namespace), inputs)
