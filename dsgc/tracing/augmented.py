"""`x += y` in recorded code: a change of `x` in place, which torch.fx takes for `x = x + y`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from dsgc.passes.in_place import AUGMENTED
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


for _target in AUGMENTED:
    setattr(Augmented, f"__{_target.__name__}__", _in_place(_target))
