"""residual_add: a dense shortcut plus a packed branch, and the ReLU that usually follows.

One pass over the map, where unpacking the branch, adding and clamping are three.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dsgc.ops.activation import activation_grads, fake_activation_grads, fake_dense, fake_stored
from dsgc.ops.spec import ACT_SCHEMA, OpSpec

__all__ = ["SPECS", "check_shortcut"]


def check_shortcut(shortcut: Tensor, size: Sequence[int]) -> None:
    """Raise ValueError unless `shortcut` is a map [N, *size]."""
    if tuple(shortcut.shape[1:]) != tuple(size):
        raise ValueError(
            f"a shortcut of {tuple(shortcut.shape)} cannot be added to maps of {tuple(size)}"
        )


def _fake(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    shortcut: Tensor,
    relu: bool,
) -> Tensor:
    return fake_dense(x, shortcut.shape[0], size)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, index, rowptr, scale, shift, act, size, _, relu = inputs
    ctx.save_for_backward(x, index, rowptr, scale, shift, output if relu else None)
    ctx.act, ctx.size = act, size


def _backward(ops: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *source, y = ctx.saved_tensors
    if y is None:
        found = (*ops.unpack_backward(grad, *source, ctx.act, ctx.size), grad)
    else:
        found = ops.residual_add_backward(grad, *source, ctx.act, ctx.size, y)
    *inner, shortcut = found
    return *activation_grads(ctx.act, *inner), shortcut, None


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    y: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *fake_activation_grads(x, index, act, size), fake_stored(y, None)


SPECS = (
    OpSpec(
        "residual_add",
        f"({ACT_SCHEMA}, Tensor shortcut, bool relu) -> Tensor",
        _fake,
        _save,
        _backward,
    ),
    OpSpec(
        "residual_add_backward",
        f"(Tensor grad, {ACT_SCHEMA}, Tensor y) -> (Tensor, Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
)
