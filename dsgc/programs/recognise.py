"""Recognising, for the exporter, what nodes of a lowered graph do."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsgc.ops.layout import in_order_of
from dsgc.ops.normalization import PackedBatchNorm, running_affine
from dsgc.ops.spec import ACTS
from dsgc.passes.patterns import (
    batch_norm,
    elementwise,
    has_own_methods,
    layer_module,
    module_of,
    shape_of,
    signature_arguments,
)
from dsgc.programs.errors import unsupported
from dsgc.tracing.mode_dropout import ModeDropout

__all__ = [
    "CONCATENATIONS",
    "affine_of",
    "averaged_dimensions",
    "changes_nothing",
    "is_fleeting",
    "is_known_module",
    "joined",
    "own_operator",
    "softmax_dimension",
    "writes_the_batch_out",
]

CONCATENATIONS: tuple[Any, ...] = (torch.cat, torch.concat, torch.concatenate)
_SOFTMAXES: tuple[Any, ...] = (F.softmax, torch.softmax, "softmax")
_SAME_METHODS = ("contiguous", "clone", "detach")
_MEANS: tuple[Any, ...] = (torch.mean, "mean")
_RESHAPES: tuple[Any, ...] = (torch.reshape, "reshape", "view", "expand")
_OUR_NAMESPACES = ("dsgc", "dsgc_cpu")


def own_operator(node: fx.Node) -> str | None:
    """What an operator of dsgc is called, in any of its namespaces; None for anything else."""
    namespace, _, name = str(node.target).partition(".")
    if node.op != "call_function" or namespace not in _OUR_NAMESPACES:
        return None
    return name.partition(".")[0]


def softmax_dimension(node: fx.Node) -> int | None:
    """The dimension of a softmax; None for anything else."""
    module = module_of(node)
    if isinstance(module, nn.Softmax):
        return module.dim
    if module is not None or node.target not in _SOFTMAXES or node.kwargs.get("dtype") is not None:
        return None
    found = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return found if isinstance(found, int) and len(node.args) <= 2 else None


def joined(node: fx.Node) -> tuple[object, object]:
    """What a concatenation joins, and along which dimension."""
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    return parts, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def is_fleeting(node: fx.Node) -> bool:
    """Whether all that is read of a node is read with one and the same activation applied."""
    readers = list(node.users)
    if len(readers) == 1:
        (reader,) = readers
        if isinstance(module_of(reader), PackedBatchNorm):
            items = [n for n in reader.users if n.target is operator.getitem and n.args[1] == 0]
            readers = [n for item in items for n in item.users]
        elif batch_norm(reader) is not None:
            return len(reader.users) == 1
        elif elementwise(reader) == "relu":
            # A norm behind it is applied together with it, other readers take it alone.
            return len(reader.users) == 1 or not any(map(_is_norm, reader.users))
    acts = [[a for a in n.args if isinstance(a, str) and a in ACTS] for n in readers]
    return all(acts) and len({name for named in acts for name in named}) == 1


def _is_norm(node: fx.Node) -> bool:
    return batch_norm(node) is not None or isinstance(module_of(node), PackedBatchNorm)


def changes_nothing(node: fx.Node) -> bool:
    """Whether a node returns its argument in eval mode, at most in another order of memory."""
    if node.op == "call_module":
        return layer_module(node, (nn.Dropout, nn.Dropout2d, nn.Identity, ModeDropout)) is not None
    if node.op == "call_method":
        return node.target in _SAME_METHODS
    if node.target is F.dropout:
        given = signature_arguments(F.dropout, node)
        return given["training"] is False or given["p"] == 0
    return node.target is in_order_of


def affine_of(norm: nn.modules.batchnorm._NormBase) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a batch norm in eval mode.

    Raises ExportError for one that takes statistics of its batch in eval mode too.
    """
    if norm.running_mean is None or norm.running_var is None:
        raise unsupported("a batch norm has no running statistics", "train the model first")
    scale, shift = running_affine(norm)
    return scale.detach(), shift.detach()


def averaged_dimensions(node: fx.Node) -> list[int]:
    """Along which dimensions a mean is taken; none for other nodes."""
    shape = shape_of(node.args[0]) if node.args else None
    if node.target not in _MEANS or not shape or node.kwargs.get("dtype") is not None:
        return []
    named = node.kwargs.get("dim", node.kwargs.get("axis"))
    found = node.args[1] if len(node.args) > 1 else named
    dimensions = found if isinstance(found, (list, tuple)) else (found,)
    return sorted(one % len(shape) if isinstance(one, int) else 0 for one in dimensions)


def is_known_module(module: nn.Module) -> bool:
    """Whether a module, and all within it, does what torch's or dsgc's layer of that kind does."""
    return all(_runs_known_code(one) for one in module.modules())


def _runs_known_code(module: nn.Module) -> bool:
    if type(module).__module__.startswith("dsgc."):
        return True
    if has_own_methods(module):
        return False
    run = [getattr(type(module), name, None) for name in ("forward", "_conv_forward")]
    return all(one is None or one.__module__.startswith("torch.nn.modules.") for one in run)


def writes_the_batch_out(node: fx.Node) -> bool:
    """Whether a reshape says how many samples there are as a number; one to a dtype counts too."""
    if node.target not in _RESHAPES:
        return False
    given = node.args[1:] or tuple(node.kwargs.values())
    wanted = given[0] if given and isinstance(given[0], (tuple, list)) else given
    first = wanted[0] if wanted else None
    return isinstance(first, torch.dtype) or (isinstance(first, int) and first != -1)
