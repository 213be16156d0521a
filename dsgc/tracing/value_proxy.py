"""Values in recorded code that answer what they are: tensors, where that is certain."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from dsgc.passes.patterns import elementwise, is_flatten
from dsgc.tracing.blame import is_torch_layer

__all__ = ["ValueProxy"]

_MAKE_OTHERS = (
    nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.AdaptiveLogSoftmaxWithLoss,
)  # fmt: skip
_OPERATORS = frozenset(
    ("add", "sub", "mul", "truediv", "matmul", "neg", "pow", "iadd", "isub", "imul", "itruediv")
)
_TENSOR_METHODS = frozenset(
    ("clone", "contiguous", "detach", "expand", "flatten", "float", "mean", "permute", "reshape",
     "softmax", "squeeze", "sum", "to", "transpose", "unsqueeze", "view")
)  # fmt: skip


class ValueProxy(fx.Proxy):
    """Stands for a value while code is recorded.

    Args:
        node: what makes it.
        tracer: which records.
        doubt: called where the user's code asks what the value is and that is not known; leaves.
    """

    def __init__(self, node: fx.Node, tracer: fx.Tracer, doubt: Callable[[], Any]) -> None:
        super().__init__(node, tracer)
        self._doubt = doubt

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """`Tensor` for `isinstance` in the user's code, where the value is one."""
        if not _asked_by_user():
            return ValueProxy
        return Tensor if _is_tensor(self.node, self.tracer) else self._doubt()

    def __getattr__(self, name: str) -> Any:
        if not hasattr(Tensor, name) and _is_tensor(self.node, self.tracer):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        return super().__getattr__(name)


def _asked_by_user() -> bool:
    """Whether the question for a class comes from code that is neither torch's nor dsgc's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and _package(frame) in sys.stdlib_module_names:
        frame = frame.f_back
    return frame.f_code.co_name == "is_tensor" or _package(frame) not in ("torch", "dsgc")


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_tensor(node: fx.Node, tracer: Any) -> bool:
    """Whether a value is a tensor for certain."""
    if node.op == "placeholder":
        return True
    if node.op == "call_module":
        module = tracer.modules[node.target]
        others = isinstance(module, _MAKE_OTHERS) or getattr(module, "return_indices", False)
        return is_torch_layer(module) and not others
    if node.op == "call_method":
        return node.target in _TENSOR_METHODS
    name = getattr(node.target, "__name__", "")
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if getattr(node.target, "__module__", "") == "_operator":
        return name in _OPERATORS and any(_is_tensor(one, tracer) for one in operands)
    known = node.target in (torch.flatten, torch.cat, torch.stack) or is_flatten(node)
    return known or elementwise(node) is not None
