"""Values in recorded code that answer what they are: tensors, where that is certain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from torch import Tensor, fx, nn

from dsgc.tracing.augmented import Augmented
from dsgc.tracing.kinds import is_tensor
from dsgc.tracing.questions import Asker, asker

__all__ = ["ValueProxy"]

_OWN = frozenset(("tracer", "node", "_modules", "_refuse"))


class ValueProxy(Augmented):
    """Stands for a value while code is recorded.

    Args:
        node: what makes it.
        tracer: which records.
        modules: those that a graph may call, by name.
        refuse: called with what the user's code does to a value that a graph cannot hold, and a
            pattern of the line; leaves.
    """

    def __init__(
        self,
        node: fx.Node,
        tracer: fx.Tracer,
        modules: Mapping[str, nn.Module],
        refuse: Callable[[str, str], NoReturn],
    ) -> None:
        super().__init__(node, tracer)
        self._modules = modules
        self._refuse = refuse

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """`Tensor` for `isinstance` in the user's code, where the value is one."""
        who = asker(depth=1)
        if who is Asker.OTHER:
            return ValueProxy
        if who is Asker.USER and is_tensor(self.node, self._modules):
            return Tensor
        what = "asks for the type of a value, which a graph does not know"
        return self._refuse(what, "isinstance|is_tensor")

    def __getattr__(self, name: str) -> Any:
        if name in ("grad", "grad_fn"):
            self._refuse(f"asks for {name!r} of a value", rf"\.{name}\b")
        if not hasattr(Tensor, name) and is_tensor(self.node, self._modules):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN:
            self._refuse(f"sets the attribute {name!r} of a value", rf"\.{name}\b")
        super().__setattr__(name, value)
