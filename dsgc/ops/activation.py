"""activate, pack and unpack: between a deferred, packed value and plain numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dsgc.ops.layout import is_bitmask
from dsgc.ops.spec import ACT_SCHEMA, OpSpec, has_affine

__all__ = ["SPECS", "fake_activation_grads", "fake_dense", "fake_stored", "selected_blocks"]

Grads = tuple[Tensor | None, ...]


def fake_dense(x: Tensor, batch: int, size: Sequence[int]) -> Tensor:
    """The shape and strides of any dense result: [batch, *size], channels last."""
    shape = (batch, *size)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def fake_stored(x: Tensor, index: Tensor | None) -> Tensor:
    """A result laid out like an input: packed values, or dense and channels last."""
    if index is None:
        return fake_dense(x, x.shape[0], x.shape[1:])
    return x.new_empty(x.shape)


def fake_activation_grads(
    x: Tensor, index: Tensor | None, act: str, size: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dscale, dshift) of any operator that reads through an activation."""
    channels = size[0] if has_affine(act) else 0
    return fake_stored(x, index), x.new_empty(channels), x.new_empty(channels)


def selected_blocks(index: Tensor) -> Any:
    """How many blocks a selection has: known for a list, a new unknown for a bitmask."""
    if is_bitmask(index):
        return torch.library.get_ctx().new_dynamic_size()
    return index.shape[0]


def save_activation(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, index, rowptr, scale, shift, act, size = inputs
    ctx.save_for_backward(x, index, rowptr, scale, shift)
    ctx.act, ctx.size = act, size


def _fake_activate(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
) -> Tensor:
    return fake_stored(x, index)


def _fake_backward(
    grad: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor]:
    return fake_activation_grads(x, index, act, size)


def _activate_backward(ops: Any, ctx: Any, grad: Tensor) -> Grads:
    dx, dscale, dshift = ops.activate_backward(grad, *ctx.saved_tensors, ctx.act, ctx.size)
    return activation_grads(ctx.act, dx, dscale, dshift)


def activation_grads(act: str, dx: Tensor, dscale: Tensor, dshift: Tensor) -> Grads:
    """The gradients of an activation's seven arguments."""
    if has_affine(act):
        return dx, None, None, dscale, dshift, None, None
    return dx, None, None, None, None, None, None


def _fake_unpack(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
) -> Tensor:
    if rowptr is None:
        return fake_stored(x, None)
    return fake_dense(x, (rowptr.shape[0] - 1) // (size[1] * size[2]), size)


def _unpack_backward(ops: Any, ctx: Any, grad: Tensor) -> Grads:
    dx, dscale, dshift = ops.unpack_backward(grad, *ctx.saved_tensors, ctx.act, ctx.size)
    return activation_grads(ctx.act, dx, dscale, dshift)


def _fake_pack(x: Tensor, index: Tensor, rowptr: Tensor, block: int) -> Tensor:
    return x.new_empty((selected_blocks(index), block))


def _save_pack(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, index, rowptr, _ = inputs
    ctx.save_for_backward(index, rowptr)
    ctx.size = x.shape[1:]


def _pack_backward(ops: Any, ctx: Any, grad: Tensor) -> Grads:
    index, rowptr = ctx.saved_tensors
    dx = ops.unpack(grad.contiguous(), index, rowptr, None, None, "identity", ctx.size)
    return dx, None, None, None


SPECS = (
    OpSpec(
        "activate", f"({ACT_SCHEMA}) -> Tensor", _fake_activate, save_activation, _activate_backward
    ),
    OpSpec(
        "activate_backward",
        f"(Tensor grad, {ACT_SCHEMA}) -> (Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
    OpSpec(
        "pack",
        "(Tensor x, Tensor index, Tensor rowptr, int block) -> Tensor",
        _fake_pack,
        _save_pack,
        _pack_backward,
    ),
    OpSpec("unpack", f"({ACT_SCHEMA}) -> Tensor", _fake_unpack, save_activation, _unpack_backward),
    OpSpec(
        "unpack_backward",
        f"(Tensor grad, {ACT_SCHEMA}) -> (Tensor, Tensor, Tensor)",
        _fake_backward,
    ),
)
