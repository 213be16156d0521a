"""dense_linear: an ordinary linear layer, dense in and dense out.

It exists because a layer that meets few rows is bound by reading its weights, and kernels that read
them once are faster than a general matrix product.
"""

from typing import Any

import torch
from torch import Tensor

from dsgc.ops.spec import OpSpec

__all__ = ["SPECS"]


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad
    found = ops.dense_linear_backward(grad, *ctx.saved_tensors, *needs)
    return tuple(value if need else None for value, need in zip(found, needs, strict=True))


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else x.new_empty(0),
        torch.empty_like(weight) if need_weight else x.new_empty(0),
        x.new_empty(weight.shape[0] if need_bias else 0),
    )


SPECS = (
    OpSpec(
        "dense_linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _fake, _save, _backward
    ),
    OpSpec(
        "dense_linear_backward",
        "(Tensor grad, Tensor x, Tensor weight, bool need_x, bool need_weight, bool need_bias) "
        "-> (Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
)
