"""Reference kernels of residual_add and its backward formula."""

from collections.abc import Sequence

from torch import Tensor

from dsgc.ops.layout import channels_last
from dsgc.ops.reference.activation import unpack, unpack_backward
from dsgc.ops.residual import check_shortcut

__all__ = ["residual_add", "residual_add_backward"]


def residual_add(
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
    """The dense [N, C, H, W] of a deferred activation plus `shortcut`, through a ReLU or not."""
    check_shortcut(shortcut, size)
    total = unpack(x, index, rowptr, scale, shift, act, size) + shortcut
    return channels_last(total.relu() if relu else total)


def residual_add_backward(
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
    """(dx, dscale, dshift, dshortcut) from the gradient of a result `y` with a ReLU."""
    inner = grad.masked_fill(y <= 0, 0)
    found = unpack_backward(inner, x, index, rowptr, scale, shift, act, size)
    return *found, channels_last(inner)
