"""What operations become that only move values: slices, padding, upsampling, other shapes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsgc.passes.patterns import layer_module
from dsgc.programs import dense_rules
from dsgc.programs.places import Taken, arranged_by, is_channels_last, is_in_order, taken
from dsgc.programs.values import Arranged, Rows
from dsgc.programs.writer import Writer
from dsgc.tracing.kinds import name_of

__all__ = ["as_rows", "moving_rule", "run_of"]

_Run = Callable[[Tensor], Any]
_FUNCTIONS: frozenset[Any] = frozenset(
    (F.pad, F.interpolate, F.channel_shuffle, F.pixel_shuffle, operator.getitem, torch.flip,
     torch.roll, torch.narrow, torch.chunk, torch.split, torch.tensor_split, torch.transpose,
     torch.permute, torch.swapaxes, torch.squeeze, torch.unsqueeze, torch.unflatten, "flip",
     "roll", "narrow", "chunk", "split", "tensor_split", "transpose", "permute", "swapaxes",
     "squeeze", "unsqueeze", "unflatten")
)  # fmt: skip
# Whose result's shape says all that they do.
_RESHAPES: frozenset[Any] = frozenset((torch.reshape, torch.flatten, "reshape", "view", "flatten"))
_EXPANSIONS = ("expand", "expand_as")
_MODULES = (
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, nn.ZeroPad2d, nn.ConstantPad2d,
    nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d, nn.ChannelShuffle, nn.PixelShuffle,
    nn.Flatten, nn.Unflatten,
)  # fmt: skip
# The place of the argument that says along which dimensions.
_DIMENSION_AT = {"roll": 2, "narrow": 1, "split": 2, "chunk": 2, "tensor_split": 2}


def moving_rule(
    writer: Writer,
    node: fx.Node,
    x: Rows | Arranged,
    known: Mapping[fx.Node, Any],
    made: Any,
) -> Callable[[], Any] | None:
    """The rule for a node whose first argument is `x`.

    Where values go is found by running the operation on their numbers, instead of reading its
    arguments: one rule serves all that move values in the same way in every sample.

    Args:
        writer: of the program.
        node: what may move values.
        x: its first argument.
        known: what it reads that no input changes.
        made: what it makes of the example, or tensors of these shapes.
    """
    if (run := run_of(node, x, known, made)) is None:
        return None
    try:
        found = arranged_by(run, x)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if isinstance(found, list):
        if not _are_of(found, made, writer.samples):
            return None
        return lambda: tuple(_placed(writer, one) for one in found)
    if found is None or not _are_of([found], [made], writer.samples):
        return None
    return lambda: _placed(writer, found)


def _are_of(found: Sequence[Arranged], made: Sequence[Tensor], samples: int) -> bool:
    """Whether all was found, as in the example: two samples may look alike where more do not."""
    shapes = [(samples, *one.places.shape) for one in found]
    return shapes == [tuple(one.shape) for one in made]


def run_of(
    node: fx.Node, x: Rows | Arranged, known: Mapping[fx.Node, Any], made: Any
) -> _Run | None:
    """What a node does to two samples of `x`, if it may be something that moves values and treats
    more samples alike; otherwise as :func:`moving_rule`.
    """
    rank = x.places.dim() + 1 if isinstance(x, Arranged) else (2 if x.matrix else 4)
    if _may_mix_samples(node, rank):
        return None
    module = layer_module(node, _MODULES)
    if module is not None:
        return module
    if node.op == "call_module":
        return None
    if node.target in _RESHAPES or node.target in _EXPANSIONS:
        wanted = (2, *made.shape[1:])
        reshapes = node.target in _RESHAPES
        return lambda x: x.reshape(wanted) if reshapes else x.expand(wanted)
    first, *others = node.args or (None,)
    read = [one for one in node.all_input_nodes if one is not first]
    if node.target not in _FUNCTIONS or any(one not in known for one in read):
        return None
    given, named = fx.map_arg((tuple(others), dict(node.kwargs)), lambda one: known[one])
    target: Any = node.target
    if isinstance(target, str):
        return lambda x: getattr(x, target)(*given, **named)
    return lambda x: target(x, *given, **named)


def _may_mix_samples(node: fx.Node, rank: int) -> bool:
    """Whether an operation may do something to samples that two of them do not show."""
    if node.target is operator.getitem:
        index = node.args[1]
        return not isinstance(index, tuple) or index[0] not in (slice(None), ...)
    at = _DIMENSION_AT.get(name_of(node))
    if at is None:
        return False
    named = node.kwargs.get("dims", node.kwargs.get("dim", 0))
    found: Any = node.args[at] if len(node.args) > at else named
    dims = found if isinstance(found, (tuple, list)) else (found,)
    return any(not isinstance(dim, int) or dim % rank == 0 for dim in dims)


def _placed(writer: Writer, value: Arranged) -> Rows | Arranged:
    """As rows, but for channels that come last: whoever reads those may not want them moved."""
    lies = value.places.dim() == 1 or tuple(value.places.shape) == value.rows.size
    return value if not lies and is_channels_last(value) else as_rows(writer, value)


def as_rows(writer: Writer, value: Arranged) -> Rows | Arranged:
    """A map or matrix, if it can be made by moving whole rows; else nothing is moved yet."""
    rows, places = value.rows, value.places
    if is_in_order(places) and places.numel() == math.prod(rows.size):
        if places.dim() == 1:
            return rows if rows.matrix else dense_rules.flatten(writer, rows)
        if tuple(places.shape) == rows.size:
            return _as_map(writer, rows)
    what = taken(value)
    return value if what is None else _moved(writer, rows, what, places.dim() == 1)


def _as_map(writer: Writer, x: Rows) -> Rows:
    """A matrix as maps of one pixel; maps stay as they are."""
    if not x.matrix:
        return x
    settled = writer.settle(x)
    return Rows(settled.view, settled.size, False, closed=True)


def _moved(writer: Writer, x: Rows, what: Taken, matrix: bool) -> Rows:
    settled = writer.settle(x)
    made = writer.rows(what.size, matrix)
    if (run := what.run()) is not None:
        writer.take(settled, made, what.pixels, *run)
        return made
    writer.gather(settled, made, what.pixels, what.skip, what.channels)
    return made
