"""Reference kernels of dense_linear."""

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dense_linear", "dense_linear_backward"]


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of a matrix: x [N, C], weight [K, C], bias [K] -> [N, K]."""
    return F.linear(x, weight, bias)


def dense_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; empty where they are not asked for."""
    made = torch.empty_like(weight) if need_weight else x.new_empty(0)
    return (
        grad @ weight if need_x else x.new_empty(0),
        # Laid out as the weight is: the optimizer then reads both in the same order.
        torch.mm(grad.t(), x, out=made) if need_weight else made,
        grad.sum(0) if need_bias else x.new_empty(0),
    )
