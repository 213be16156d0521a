"""batch_affine: the scale and shift that normalise every channel by its own mean and variance."""

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
    weight: Tensor | None,
    bias: Tensor | None,
    size: Sequence[int],
    relu: bool,
    over: str,
    eps: float,
) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(size[0]) for _ in range(6))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, index, rowptr, weight, bias, size, relu, _, eps = inputs
    _, _, mean, var, unbiased, count = output
    ctx.save_for_backward(x, index, rowptr, weight, mean, var, count)
    ctx.mark_non_differentiable(mean, var, unbiased, count)
    ctx.has_bias, ctx.rest = bias is not None, (size, relu, eps)


def _backward(
    ops: Any, ctx: Any, dscale: Tensor, dshift: Tensor, *_: Tensor
) -> tuple[Tensor | None, ...]:
    dx, dweight, dbias = ops.batch_affine_backward(
        None, dscale, dshift, *ctx.saved_tensors, *ctx.rest
    )
    weighted = ctx.saved_tensors[3] is not None
    return (
        dx, None, None, dweight if weighted else None, dbias if ctx.has_bias else None,
        None, None, None, None,
    )  # fmt: skip


def _fake_backward(
    grad: Tensor | None,
    dscale: Tensor | None,
    dshift: Tensor | None,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    size: Sequence[int],
    relu: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_stored(x, index), x.new_empty(size[0]), x.new_empty(size[0])


SPECS = (
    OpSpec(
        "batch_affine",
        "(Tensor x, Tensor? index, Tensor? rowptr, Tensor? weight, Tensor? bias, int[3] size,"
        " bool relu, str over, float eps)"
        " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake,
        _save,
        _backward,
    ),
    OpSpec(
        "batch_affine_backward",
        "(Tensor? grad, Tensor? dscale, Tensor? dshift, Tensor x, Tensor? index, Tensor? rowptr,"
        " Tensor? weight, Tensor mean, Tensor var, Tensor count, int[3] size, bool relu, float eps)"
        " -> (Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
)
