"""pool2d: max and average pooling of packed activations; max_pool2d: of a dense map that is still
to be activated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsgc.ops.activation import activation_grads, fake_activation_grads, fake_dense
from dsgc.ops.layout import is_bitmask, pool_output_size
from dsgc.ops.spec import ACT_SCHEMA, OpSpec

__all__ = ["SPECS", "ZERO_TAP", "check_dense_pooling", "check_taps"]

ZERO_TAP = 255
"""The argmax of an output that is the zero of an unselected position."""


_POOL = (
    "str mode, int[2] kernel, int[2] stride, int[2] padding, bool ceil_mode, bool count_include_pad"
)
_WINDOW = "int[2] kernel, int[2] stride, int[2] padding, bool ceil_mode"


def check_taps(kernel: Sequence[int]) -> None:
    """Raise ValueError if a window has more taps than an argmax can tell apart."""
    if kernel[0] * kernel[1] >= ZERO_TAP:
        raise ValueError(f"a pooling window has at most {ZERO_TAP - 1} taps, not {list(kernel)}")


def check_dense_pooling(index: Tensor | None, kernel: Sequence[int]) -> None:
    """Raise ValueError if max_pool2d cannot pool this."""
    if index is not None:
        raise ValueError("max_pool2d takes dense input only; pool2d takes packed")
    check_taps(kernel)


def _fake(
    x: Tensor,
    index: Tensor,
    rowptr: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    height, width = pool_output_size(size, kernel, stride, padding, ceil_mode)
    positions = (rowptr.shape[0] - 1) // (size[1] * size[2]) * (height * width)
    nnz = torch.library.get_ctx().new_dynamic_size()
    values = x.new_empty((nnz, x.shape[1]))
    y_index = index.new_empty((positions, index.shape[1]) if is_bitmask(index) else (nnz,))
    argmax = index.new_empty(values.shape if mode == "max" else (0,), dtype=torch.uint8)
    return values, y_index, rowptr.new_empty(positions + 1), argmax


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, index, rowptr, scale, shift, act, size, *rest = inputs
    _, y_index, y_rowptr, argmax = output
    ctx.save_for_backward(x, index, rowptr, scale, shift, y_index, y_rowptr, argmax)
    ctx.mark_non_differentiable(y_index, y_rowptr, argmax)
    ctx.act, ctx.size, ctx.rest = act, size, rest


def _backward(ops: Any, ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    *stored, y_index, y_rowptr, argmax = ctx.saved_tensors
    dx, dscale, dshift = ops.pool2d_backward(
        grad, *stored, ctx.act, ctx.size, y_index, y_rowptr, argmax, *ctx.rest
    )
    return *activation_grads(ctx.act, dx, dscale, dshift), *(None,) * 6


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor,
    rowptr: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    y_index: Tensor,
    y_rowptr: Tensor,
    argmax: Tensor,
    mode: str,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_activation_grads(x, index, act, size)


def _fake_dense(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor]:
    out = (size[0], *pool_output_size(size, kernel, stride, padding, ceil_mode))
    made = fake_dense(x, x.shape[0], out)
    return made, torch.empty_like(made, dtype=torch.uint8)


def _save_dense(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, index, rowptr, scale, shift, act, size, *rest = inputs
    ctx.save_for_backward(x, index, rowptr, scale, shift, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.act, ctx.size, ctx.rest = act, size, rest


def _dense_backward(ops: Any, ctx: Any, grad: Tensor, *others: Tensor) -> tuple[Tensor | None, ...]:
    *stored, argmax = ctx.saved_tensors
    found = ops.max_pool2d_backward(grad, *stored, ctx.act, ctx.size, argmax, *ctx.rest)
    return *activation_grads(ctx.act, *found), *(None,) * 4


def _fake_dense_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    argmax: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_activation_grads(x, index, act, size)


SPECS = (
    OpSpec(
        "pool2d",
        f"({ACT_SCHEMA}, {_POOL}) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake,
        _save,
        _backward,
    ),
    OpSpec(
        "pool2d_backward",
        f"(Tensor grad, {ACT_SCHEMA}, Tensor y_index, Tensor y_rowptr, Tensor argmax, {_POOL})"
        " -> (Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
    OpSpec(
        "max_pool2d",
        f"({ACT_SCHEMA}, {_WINDOW}) -> (Tensor, Tensor)",
        _fake_dense,
        _save_dense,
        _dense_backward,
    ),
    OpSpec(
        "max_pool2d_backward",
        f"(Tensor grad, {ACT_SCHEMA}, Tensor argmax, {_WINDOW}) -> (Tensor, Tensor, Tensor)",
        _fake_dense_backward,
    ),
)
