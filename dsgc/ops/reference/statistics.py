"""Reference kernels of batch_affine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.ops.layout import channels_last
from dsgc.ops.reference.activation import block_ids, per_channel, per_entry

__all__ = ["batch_affine", "batch_affine_backward", "unit_of"]


def batch_affine(
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
    """(scale, shift, mean, biased variance, unbiased variance, count) of every channel, [C] each.

    `f(x) * scale + shift`, where f is a ReLU if `relu`, is `(f(x) - mean) / sqrt(variance + eps) *
    weight + bias`. A channel of a single entry is its own mean: its scale is zero and its shift the
    bias, without the rounding error that 1 / sqrt(eps) would blow up. Mean and variances are zero
    where the count is.

    over="active" counts the selected entries, over="all" every position, unselected ones as zeros.
    """
    if over not in ("active", "all"):
        raise ValueError(f'over must be "active" or "all", not {over!r}')
    ids = block_ids(index, rowptr)
    f = x.relu() if relu else x
    stored = per_channel(torch.ones_like(f), ids, size[0])
    count = stored
    if over == "all" and rowptr is not None:
        count = torch.full_like(stored, rowptr.shape[0] - 1)
    divisor = count.clamp(min=1)
    mean = per_channel(f, ids, size[0]) / divisor
    # Two passes: sum(x^2) - sum(x)^2 loses all digits where the mean is large against the
    # deviation.
    square = per_channel((f - per_entry(mean, ids, x.shape[1])).square(), ids, size[0])
    square = square + (count - stored) * mean.square()
    var = square / divisor
    scale = unit_of(var, eps, count)
    scale = scale.clone() if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return scale, shift, mean, var, square / (count - 1).clamp(min=1), count.clone()


def unit_of(var: Tensor, eps: float, count: Tensor | None) -> Tensor:
    """What divides by the standard deviation, [C].

    `count` [C] is given where mean and var come from the batch. A single entry is its own mean: it
    normalises to exactly zero and takes no gradient, which zero says without the rounding error
    that 1/sqrt(eps) would blow up.
    """
    unit = (var + eps).rsqrt()
    return unit if count is None else unit.masked_fill(count <= 1, 0)


def batch_affine_backward(
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
    """(dx, dweight, dbias), dx stored as x is: `grad`, which is zero for None, and what reaches x
    through scale and shift by way of the statistics.
    """
    zero = torch.zeros_like(mean)
    dscale, dshift = zero if dscale is None else dscale, zero if dshift is None else dshift
    unit, divisor = unit_of(var, eps, count), count.clamp(min=1)
    gain = unit.new_ones(()) if weight is None else weight
    # shift = bias - mean * scale and scale = weight * unit
    whole = dscale - mean * dshift
    dmean, dvar = -gain * unit * dshift, -0.5 * whole * gain * unit**3
    ids, block = block_ids(index, rowptr), x.shape[1]
    centred = (x.relu() if relu else x) - per_entry(mean, ids, block)
    dx = (
        per_entry(dmean / divisor, ids, block) + per_entry(2 * dvar / divisor, ids, block) * centred
    )
    if relu:
        dx = dx.masked_fill(x <= 0, 0)
    if grad is not None:
        dx = dx + grad
    return channels_last(dx) if index is None else dx, whole * unit, dshift.clone()
