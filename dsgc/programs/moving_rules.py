"""What operations become that only move pixels and channels: slices, padding, upsampling."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dsgc.passes.patterns import layer_module
from dsgc.programs.values import Rows, row_width
from dsgc.programs.writer import Writer
from dsgc.tracing.kinds import name_of

__all__ = ["moving_rule"]

_FUNCTIONS: frozenset[Any] = frozenset(
    (F.pad, F.interpolate, operator.getitem, torch.flip, torch.roll, torch.narrow, torch.chunk,
     torch.split, torch.transpose, torch.permute, torch.swapaxes, "flip", "roll", "narrow", "chunk",
     "split", "transpose", "permute", "swapaxes")
)  # fmt: skip
_MODULES = (
    nn.Upsample, nn.UpsamplingNearest2d, nn.ZeroPad2d, nn.ConstantPad2d, nn.ReflectionPad2d,
    nn.ReplicationPad2d, nn.CircularPad2d,
)  # fmt: skip
# The place of the argument that says along which dimensions.
_DIMENSION_AT = {"roll": 2, "narrow": 1, "split": 2, "chunk": 2}


@dataclass(frozen=True)
class _Moved:
    """Where a result's values come from: channels `skip` to `skip + channels` of the source stand
    behind `before` channels of zeros, pixels at `pixels`, -1 for zero.
    """

    size: tuple[int, int, int]
    pixels: Tensor
    channels: int
    skip: int
    before: int


def moving_rule(
    writer: Writer, node: fx.Node, x: Rows, known: Mapping[fx.Node, Any]
) -> Callable[[], Any] | None:
    """The rule for a node whose first argument is `x`; `known` are values that no input changes.

    Where values go is found by running the operation on their numbers, instead of reading its
    arguments: one rule serves all that move values in the same way in every sample.
    """
    module = layer_module(node, _MODULES)
    if module is None and node.target not in _FUNCTIONS:
        return None
    first, *others = node.args
    if _may_mix_samples(node, 2 if x.matrix else 4) or any(
        read not in known for read in node.all_input_nodes if read is not first
    ):
        return None
    rest = fx.map_arg((tuple(others), dict(node.kwargs)), lambda read: known[read])

    def run(values: Tensor) -> Any:
        if module is not None:
            return module(values)
        if isinstance(node.target, str):
            return getattr(values, node.target)(*rest[0], **rest[1])
        return node.target(values, *rest[0], **rest[1])

    try:
        found = _moves(run, x)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None
    if found is None:
        return None
    if isinstance(found, _Moved):
        return lambda: _taken(writer, x, found)
    return lambda: tuple(_taken(writer, x, one) for one in found)


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


def _moves(run: Callable[[Tensor], Any], x: Rows) -> _Moved | list[_Moved] | None:
    count = 2 * math.prod(x.size)  # of two samples, which must not meet
    shape = (2, x.size[0]) if x.matrix else (2, *x.size)
    # None is zero, nor an average of others: what is not among them was computed, or added.
    drawn = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1.0
    made = run(drawn.view(shape))
    ordered = drawn.sort()
    if isinstance(made, Tensor):
        return _moved(made, ordered, x)
    found = [_moved(one, ordered, x) for one in made]
    return [one for one in found if one is not None] if None not in found else None


def _numbers(made: Tensor, drawn: tuple[Tensor, Tensor]) -> Tensor | None:
    """From 1, the places of values among `drawn`, which are sorted, with their places; 0 for zeros.
    None if there are others.
    """
    ordered, places = drawn
    at = torch.searchsorted(ordered, made.contiguous()).clamp(max=len(ordered) - 1)
    found = torch.where(made == 0, 0, places[at] + 1)
    return found if bool(((made == 0) | (ordered[at] == made)).all()) else None


def _moved(made: Tensor, drawn: tuple[Tensor, Tensor], x: Rows) -> _Moved | None:
    """What the numbers tell; None if values are computed, or move in another way."""
    shape = (2, -1, 1, 1) if x.matrix else made.shape
    if made.dim() != (2 if x.matrix else 4) or made.shape[0] != 2 or not made.numel():
        return None
    if (numbers := _numbers(made.reshape(shape), drawn)) is None:
        return None
    mine, other = numbers.flatten(2)
    there = mine > 0
    if not torch.equal(other, torch.where(there, mine + math.prod(x.size), 0)):
        return None
    area = x.size[1] * x.size[2]
    channels, pixels = there.any(1).nonzero().flatten(), there.any(0).nonzero().flatten()
    if not len(channels):
        return None
    from_channel = (mine[channels, pixels[0]] - 1) // area
    from_pixel = (mine[channels[0]] - 1) % area
    expected = torch.zeros_like(mine)
    expected[channels[:, None], pixels] = from_channel[:, None] * area + from_pixel[pixels] + 1
    before, skip = int(channels[0]), int(from_channel[0])
    in_order = torch.equal(from_channel - skip, channels - before)
    if not torch.equal(expected, mine) or not in_order:
        return None
    table = torch.full((mine.shape[1],), -1, dtype=torch.int32)
    table[pixels] = from_pixel[pixels].to(torch.int32)
    height, width = made.reshape(shape).shape[2:]
    size = (mine.shape[0], int(height), int(width))
    return _Moved(size, table, len(channels), skip, before)


def _taken(writer: Writer, x: Rows, moved: _Moved) -> Rows:
    settled = writer.settle(x)
    made = writer.rows(moved.size, x.matrix, row_width(moved.size[0]))
    writer.take(settled, made, moved.pixels, moved.channels, moved.skip, moved.before)
    return made
