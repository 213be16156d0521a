"""conv2d: dense or packed input, packed output, read and written only where selected."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsgc.ops.activation import activation_grads, fake_activation_grads, selected_blocks
from dsgc.ops.spec import ACT_SCHEMA, GEOMETRY_SCHEMA, OpSpec

__all__ = ["SPECS"]

_OUTPUT = "Tensor y_index, Tensor y_rowptr, int block"


def _fake(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    y_index: Tensor,
    y_rowptr: Tensor,
    block: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    return x.new_empty((selected_blocks(y_index), block))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, index, rowptr, scale, shift, act, size, weight, _, y_index, y_rowptr, *rest = inputs
    ctx.save_for_backward(x, index, rowptr, scale, shift, weight, y_index, y_rowptr)
    ctx.act, ctx.size, ctx.rest = act, size, rest


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return gradients(
        ops, grad, ctx.saved_tensors, ctx.act, ctx.size, ctx.rest, ctx.needs_input_grad
    )


def gradients(
    ops: Any,
    grad: Tensor,
    saved: Sequence[Tensor | None],
    act: str,
    size: Sequence[int],
    rest: Sequence[Any],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """A gradient or None for each argument of conv2d, from what its forward saved."""
    x, index, rowptr, scale, shift, weight, y_index, y_rowptr = saved
    need_x, need_weight, need_bias = needs[0] or needs[3] or needs[4], needs[7], needs[8]
    dx, dscale, dshift, dweight, dbias = ops.conv2d_backward(
        grad, x, index, rowptr, scale, shift, act, size, weight, y_index, y_rowptr,
        *rest, need_x, need_weight, need_bias,
    )  # fmt: skip
    inputs = activation_grads(act, dx, dscale, dshift) if need_x else (None,) * 7
    outer = (dweight if need_weight else None, dbias if need_bias else None)
    return *inputs, *outer, None, None, None, None, None, None


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    weight: Tensor,
    y_index: Tensor,
    y_rowptr: Tensor,
    block: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    none = (x.new_empty(0), x.new_empty(0), x.new_empty(0))
    dx, dscale, dshift = fake_activation_grads(x, index, act, size) if need_x else none
    dweight = weight.new_empty(weight.shape if need_weight else 0)
    return dx, dscale, dshift, dweight, weight.new_empty(weight.shape[0] if need_bias else 0)


SPECS = (
    OpSpec(
        "conv2d",
        f"({ACT_SCHEMA}, Tensor weight, Tensor? bias, {_OUTPUT}, {GEOMETRY_SCHEMA}) -> Tensor",
        _fake,
        _save,
        _backward,
    ),
    OpSpec(
        "conv2d_backward",
        f"(Tensor grad, {ACT_SCHEMA}, Tensor weight, {_OUTPUT}, {GEOMETRY_SCHEMA}, bool need_x, "
        "bool need_weight, bool need_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
)
