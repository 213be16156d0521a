"""Models that stayed dense, and have so little to do that programs are faster than PyTorch.

A call of a small layer in PyTorch takes longer than its multiply-adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dsgc.errors import TraceError
from dsgc.seen import has_only_tensors

if TYPE_CHECKING:
    from dsgc.engine import Engine
    from dsgc.programs.live import LiveProgram

__all__ = ["small_program"]

_SMALL = 50_000_000  # multiply-adds of a call, up to which programs are faster


def small_program(
    engine: Engine, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> LiveProgram | None:
    """The program of a model without sparse layers for this call; None where there is none, or
    where PyTorch is as fast.
    """
    layers = engine.decisions.values()
    macs = sum([layer.macs for layer in layers])
    linear = sum([layer.macs for layer in layers if layer.kind == "Linear"])
    # A small linear layer is one quick call of PyTorch's.
    if 2 * linear > macs or macs > _SMALL:
        return None
    if engine.last is None or not args or not has_only_tensors(args, kwargs):
        return None
    (program, ran_on), inputs = engine.last, list(args)
    # Multiply-adds are known for the shapes that layers were chosen for.
    if [x.shape[1:] for x in inputs] != [x.shape[1:] for x in program.example]:
        return None
    samples = max((x.shape[0] for x in inputs if x.dim()), default=0)
    if macs * samples > _SMALL or torch.is_autocast_enabled("cpu"):
        return None
    if ran_on is None or engine.inference.refuses(program.lowered(ran_on)):
        return None
    namespace = engine.backend.namespace_for(inputs)
    if namespace is None or not engine.inference.is_wanted(inputs):
        return None
    try:
        program, _ = engine.program("", args, kwargs)
    except TraceError:
        return None
    return engine.inference.program(program.lowered(namespace), inputs)
