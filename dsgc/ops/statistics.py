"""batch_stats: mean and variance of every channel over what was computed, or over everything."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsgc.ops.activation import fake_stored
from dsgc.ops.spec import OpSpec

__all__ = ["SPECS"]


def _fake(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    size: Sequence[int],
    relu: bool,
    over: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(size[0]), x.new_empty(size[0]), x.new_empty(size[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, index, rowptr, size, relu, _ = inputs
    mean, _, count = output
    ctx.save_for_backward(x, index, rowptr, mean, count)
    ctx.mark_non_differentiable(count)
    ctx.size, ctx.relu = size, relu


def _backward(
    ops: Any, ctx: Any, dmean: Tensor, dvar: Tensor, dcount: Tensor
) -> tuple[Tensor | None, ...]:
    dx = ops.batch_stats_backward(None, dmean, dvar, *ctx.saved_tensors, ctx.size, ctx.relu)
    return dx, None, None, None, None, None


def _fake_backward(
    grad: Tensor | None,
    dmean: Tensor,
    dvar: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    mean: Tensor,
    count: Tensor,
    size: Sequence[int],
    relu: bool,
) -> Tensor:
    return fake_stored(x, index)


SPECS = (
    OpSpec(
        "batch_stats",
        "(Tensor x, Tensor? index, Tensor? rowptr, int[3] size, bool relu, str over)"
        " -> (Tensor, Tensor, Tensor)",
        _fake,
        _save,
        _backward,
    ),
    OpSpec(
        "batch_stats_backward",
        "(Tensor? grad, Tensor dmean, Tensor dvar, Tensor x, Tensor? index, Tensor? rowptr,"
        " Tensor mean, Tensor count, int[3] size, bool relu) -> Tensor",
        _fake_backward,
    ),
)
