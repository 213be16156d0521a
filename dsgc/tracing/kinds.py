"""What a recorded value is, as far as the graph tells: a tensor, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from dsgc.passes.patterns import elementwise, is_flatten
from dsgc.tracing.blame import is_torch_layer

__all__ = ["is_number", "is_tensor", "may_be_number", "name_of"]

_MAKE_OTHERS = (
    nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.AdaptiveLogSoftmaxWithLoss,
)  # fmt: skip
_ARITHMETIC = frozenset(
    ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "iadd", "isub", "imul",
     "itruediv", "ifloordiv", "imod", "ipow")
)  # fmt: skip
_TENSOR_METHODS = frozenset(
    ("clone", "contiguous", "detach", "expand", "flatten", "float", "mean", "permute", "reshape",
     "softmax", "squeeze", "sum", "to", "transpose", "unsqueeze", "view")
)  # fmt: skip
_PARTS = frozenset(("chunk", "split", "unbind", "tensor_split"))
_NUMBER_METHODS = frozenset(("size", "dim", "ndimension", "numel", "nelement", "element_size"))
_NUMBER_ATTRIBUTES = frozenset(("shape", "ndim", "itemsize", "nbytes"))


def is_tensor(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a value is a tensor for certain; `modules` are those that the graph calls."""
    if node.op in ("placeholder", "get_attr"):
        return True
    if node.op == "call_module":
        module = modules[str(node.target)]
        others = isinstance(module, _MAKE_OTHERS) or getattr(module, "return_indices", False)
        return is_torch_layer(module) and not others
    if node.op == "call_method":
        return node.target in _TENSOR_METHODS
    if _of_operator(node, "getitem"):
        source: Any = node.args[0]
        if isinstance(source, fx.Node) and name_of(source) in _PARTS:
            return isinstance(node.args[1], int)
        return isinstance(source, fx.Node) and is_tensor(source, modules)
    if _of_operator(node, *_ARITHMETIC, "matmul"):
        operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
        return any(is_tensor(one, modules) for one in operands)
    known = node.target in (torch.flatten, torch.cat, torch.stack) or is_flatten(node)
    return known or elementwise(node) is not None


def is_number(node: fx.Node) -> bool:
    """Whether a value is a number, or sizes, for certain."""
    if node.op == "call_method":
        return node.target in _NUMBER_METHODS
    if node.target is getattr:
        return node.args[1] in _NUMBER_ATTRIBUTES
    if not _of_operator(node, "getitem", *_ARITHMETIC):
        return False
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    return bool(operands) and all(is_number(one) for one in operands)


def may_be_number(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a value may be a number, or anything else that `+=` leaves as it is: what torch's
    own functions, methods and layers make is taken for a tensor.
    """
    if is_tensor(node, modules):
        return False
    if node.op == "call_method":
        return node.target in ("item", "tolist") or is_number(node)
    if _of_operator(node, "getitem", *_ARITHMETIC):
        return all(may_be_number(one, modules) for one in node.all_input_nodes)
    made_by = getattr(node.target, "__module__", None) or type(node.target).__module__
    return node.op != "call_function" or not made_by.startswith("torch")


def name_of(node: fx.Node) -> str:
    """What the function or method is called that `node` calls; nothing for others."""
    if node.op not in ("call_function", "call_method"):
        return ""
    target: Any = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", "")


def _of_operator(node: fx.Node, *names: str) -> bool:
    """Whether `node` calls one of these functions of the module `operator`."""
    return getattr(node.target, "__module__", "") == "_operator" and name_of(node) in names
