"""Reference kernels of batch_stats."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.ops.layout import channels_last
from dsgc.ops.reference.activation import block_ids, per_channel, per_entry

__all__ = ["batch_stats", "batch_stats_backward"]


def batch_stats(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    size: Sequence[int],
    relu: bool,
    over: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, biased variance, count) of every channel, [C] each; zeros where the count is zero.

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
    return mean, square / divisor, count.clone()


def batch_stats_backward(
    grad: Tensor | None,
    dmean: Tensor,
    dvar: Tensor,
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    mean: Tensor,
    count: Tensor,
    size: Sequence[int],
    relu: bool,
) -> Tensor:
    """dx, stored as x is: grad + (dmean + 2 * dvar * (f(x) - mean)) / count * f'(x)."""
    ids = block_ids(index, rowptr)
    block = x.shape[1]
    divisor = count.clamp(min=1)
    f = x.relu() if relu else x
    centred = f - per_entry(mean, ids, block)
    dx = (
        per_entry(dmean / divisor, ids, block) + per_entry(2 * dvar / divisor, ids, block) * centred
    )
    if relu:
        dx = dx.masked_fill(x <= 0, 0)
    if grad is not None:
        dx = dx + grad
    return channels_last(dx) if index is None else dx
