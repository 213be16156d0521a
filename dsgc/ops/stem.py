"""stem_conv2d: an ordinary convolution of few input channels, dense in and dense out.

It exists so that its result can be made again in backward instead of being kept: see
`dsgc.ops.recompute`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsgc.ops.activation import fake_dense
from dsgc.ops.layout import conv_output_size
from dsgc.ops.spec import GEOMETRY_SCHEMA, OpSpec

__all__ = ["SPECS"]


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    height, width = conv_output_size(x.shape[1:], weight.shape[2:], stride, padding, dilation)
    return fake_dense(x, x.shape[0], (weight.shape[0], height, width))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, *window = inputs
    ctx.save_for_backward(x, weight)
    ctx.window = window


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    found = ops.stem_conv2d_backward(grad, x, weight, *ctx.window, *needs)
    wanted = (value if need else None for value, need in zip(found, needs, strict=True))
    return (*wanted, None, None, None)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        fake_dense(x, x.shape[0], x.shape[1:]) if need_x else x.new_empty(0),
        torch.empty_like(weight) if need_weight else x.new_empty(0),
        x.new_empty(weight.shape[0] if need_bias else 0),
    )


SPECS = (
    OpSpec(
        "stem_conv2d",
        f"(Tensor x, Tensor weight, Tensor? bias, {GEOMETRY_SCHEMA}) -> Tensor",
        _fake,
        _save,
        _backward,
    ),
    OpSpec(
        "stem_conv2d_backward",
        f"(Tensor grad, Tensor x, Tensor weight, {GEOMETRY_SCHEMA}, bool need_x, bool need_weight, "
        "bool need_bias) -> (Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
)
