"""`x += y` in recorded code: a change of `x` in place, which torch.fx takes for `x = x + y`."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from dsgc.tracing.kinds import is_number

__all__ = ["Augmented"]


def _in_place(target: Callable[[Any, Any], Any]) -> Callable[[Augmented, Any], Any]:
    def record(self: Augmented, other: Any) -> Any:
        if is_number(self.node):
            return NotImplemented  # numbers are not changed in place: Python computes a new one
        return self.tracer.create_proxy("call_function", target, (self, other), {})

    return record


class Augmented(fx.Proxy):
    """A value whose augmented assignments are recorded as what they are."""

    __iadd__ = _in_place(operator.iadd)
    __isub__ = _in_place(operator.isub)
    __imul__ = _in_place(operator.imul)
    __itruediv__ = _in_place(operator.itruediv)
    __ifloordiv__ = _in_place(operator.ifloordiv)
    __imod__ = _in_place(operator.imod)
    __ipow__ = _in_place(operator.ipow)
    __iand__ = _in_place(operator.iand)
    __ior__ = _in_place(operator.ior)
    __ixor__ = _in_place(operator.ixor)
    __ilshift__ = _in_place(operator.ilshift)
    __irshift__ = _in_place(operator.irshift)
