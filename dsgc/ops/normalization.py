"""Batch normalisation of what was selected, on dense tensors with a mask and on packed values.

Both modules wrap the user's own BatchNorm: its parameters, running statistics, momentum, eps and
`training` flag are the ones in force. With over="active" a channel's statistics are those of its
selected entries; a channel without any keeps its running statistics. With over="all" (the DSG
paper's rule) every position counts, unselected ones as zeros.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from dsgc.ops.direct import CallsOperators, suited_to
from dsgc.ops.first_derivative import first_derivative_only
from dsgc.ops.layout import block_of, expand_mask
from dsgc.ops.masked import apply_mask
from dsgc.ops.reference.statistics import unit_of

__all__ = ["MaskedBatchNorm", "PackedBatchNorm"]


def _check(bn: nn.Module, over: str) -> _NormBase:
    if not isinstance(bn, _NormBase):
        raise ValueError(f"a BatchNorm is needed, not {type(bn).__name__}")
    if over not in ("active", "all"):
        raise ValueError(f'over must be "active" or "all", not {over!r}')
    return bn


def _uses_batch(bn: _NormBase) -> bool:
    """Whether statistics come from the batch, by PyTorch's rule."""
    return bn.training or (bn.running_mean is None and bn.running_var is None)


def _check_positions(bn: _NormBase, positions: int) -> None:
    if bn.training and positions == 1:
        raise ValueError("batch normalisation needs more than one value per channel in training")


def _update_running(bn: _NormBase, mean: Tensor, unbiased: Tensor, count: Tensor) -> None:
    """Move the running statistics of the channels that had entries, as PyTorch would.

    mean, unbiased variance and count are [C]. To be called where no gradients are recorded.
    """
    if not (bn.training and bn.track_running_stats):
        return
    if bn.num_batches_tracked is not None:
        bn.num_batches_tracked.add_(1)
    if bn.running_mean is None or bn.running_var is None:
        return
    dtype = bn.running_mean.dtype
    if bn.momentum is not None:
        factor: float | Tensor = bn.momentum
    else:
        tracked = bn.num_batches_tracked
        factor = 0.0 if tracked is None else 1.0 / tracked.to(dtype)
    rate = count.clamp(max=1).to(dtype) * factor
    bn.running_mean.lerp_(mean.to(dtype), rate)
    bn.running_var.lerp_(unbiased.to(dtype), rate)


def _scale_and_shift(
    bn: _NormBase, mean: Tensor, var: Tensor, count: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """[C] each, such that x * scale + shift is x normalised; differentiable in everything."""
    scale = unit_of(var, bn.eps, count)
    if bn.weight is not None:
        scale = scale * bn.weight
    shift = -mean * scale
    if bn.bias is not None:
        shift = shift + bn.bias
    return scale, shift


def running_affine(bn: _NormBase) -> tuple[Tensor, Tensor]:
    """Scale and shift [C] of a batch norm that normalises with its running statistics.

    Raises ValueError if it has none.
    """
    return _scale_and_shift(bn, *_running(bn))


def _running(bn: _NormBase) -> tuple[Tensor, Tensor]:
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("running statistics are incomplete: one of mean and variance is missing")
    return bn.running_mean, bn.running_var


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of a masked y, masked again: the double mask.

    Args:
        bn: the user's BatchNorm1d or BatchNorm2d.
        over: "active" or "all".
        block: channels of a block; None finds the power of two that fits the mask.

    Raises:
        ValueError: `bn` or `over` is none of these; in forward, training on a single position.
    """

    def __init__(self, bn: nn.Module, over: str, block: int | None = None) -> None:
        super().__init__()
        self.bn = _check(bn, over)
        self.over = over
        self.block = block

    def forward(self, y: Tensor, mask: Tensor) -> Tensor:
        """y [N, C, H, W] or [rows, C], zero outside mask [N, blocks, H, W]; the same shape."""
        block = self.block or block_of(y.shape[1], mask.shape[1])
        # Statistics of half precision values are taken in single precision, as PyTorch does.
        wide = y if y.dtype in (torch.float32, torch.float64) else y.float()
        if _uses_batch(self.bn):
            mean, var, count = self._statistics(wide, mask, block)
            with torch.no_grad():
                _update_running(self.bn, mean, var * count / (count - 1).clamp(min=1), count)
            scale, shift = _scale_and_shift(self.bn, mean, var, count)
        else:
            scale, shift = running_affine(self.bn)
        view = (1, -1, 1, 1) if y.dim() == 4 else (1, -1)
        out = wide * scale.view(view) + shift.view(view)
        return apply_mask(out, mask, block).to(y.dtype)

    def _statistics(self, y: Tensor, mask: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        channels = y.shape[1]
        positions = y.numel() // channels
        _check_positions(self.bn, positions)
        rows = y.transpose(0, 1).reshape(channels, -1)
        active = torch.ones_like(rows, dtype=torch.bool)
        if self.over == "active":
            wide = expand_mask(mask, block, channels).view(y.shape)
            active = wide.transpose(0, 1).reshape(channels, -1)
        count = active.sum(1).to(y.dtype)
        divisor = count.clamp(min=1)
        mean = rows.sum(1) / divisor
        centred = (rows - mean.view(-1, 1)).masked_fill(~active, 0)
        return mean, centred.square().sum(1) / divisor, count


class _Affine(torch.autograd.Function):
    """(x itself, and what batch_affine returns): whoever reads x through this leaves its gradient
    here.

    The gradient of the statistics is then added to it in one pass, where two separate gradients
    of x would take a tensor more and another pass to add.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        index: Tensor | None,
        rowptr: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        size: Sequence[int],
        relu: bool,
        over: str,
        eps: float,
        ops: Any,
        again: Any,
    ) -> tuple[Tensor, ...]:
        found = ops.batch_affine(x, index, rowptr, weight, bias, size, relu, over, eps)
        _, _, mean, var, unbiased, count = found
        ctx.again = None if again is None else again.hold()
        kept = x if again is None else None
        ctx.save_for_backward(kept, index, rowptr, weight, mean, var, count)
        ctx.mark_non_differentiable(mean, var, unbiased, count)
        ctx.set_materialize_grads(False)
        ctx.has_bias, ctx.rest, ctx.ops = bias is not None, (size, relu, eps), ops
        return x.view_as(x), *found

    @staticmethod
    @first_derivative_only
    def backward(
        ctx: Any, dx: Tensor | None, dscale: Tensor | None, dshift: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        x, *others = ctx.saved_tensors
        if ctx.again is not None:
            x = ctx.again.take()
        if dscale is None and dshift is None:
            return (dx, *(None,) * 10)
        ops = suited_to(ctx.ops, [dx, dscale, dshift])
        dx, dweight, dbias = ops.batch_affine_backward(dx, dscale, dshift, x, *others, *ctx.rest)
        weighted = others[2] is not None
        outer = (dweight if weighted else None, dbias if ctx.has_bias else None)
        return dx, None, None, *outer, *(None,) * 6


class PackedBatchNorm(CallsOperators):
    """The scale and shift that normalise a packed (or dense, then all of it) activation.

    Args:
        bn: the user's BatchNorm1d or BatchNorm2d.
        over: "active" or "all".
        namespace: whose `batch_affine` operator to use, `torch.ops.<namespace>`.

    Raises:
        ValueError: `bn` or `over` is none of these; in forward, training on a single position.
    """

    def __init__(self, bn: nn.Module, over: str, namespace: str) -> None:
        super().__init__(namespace)
        self.bn = _check(bn, over)
        self.over = over

    def forward(
        self,
        x: Tensor,
        index: Tensor | None,
        rowptr: Tensor | None,
        size: Sequence[int],
        relu: bool,
        again: Any = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(x, scale, shift): scale and shift [C] are for relu(x) if `relu`, else for x.

        With `again`, a `dsgc.ops.recompute.Recomputable`, x is not kept for backward.

        x is the tensor given. Whoever reads the result rather than the argument saves a pass in
        backward.
        """
        if _uses_batch(self.bn):
            rows = x.shape[0] * size[1] * size[2] if rowptr is None else rowptr.shape[0] - 1
            _check_positions(self.bn, rows)
            ops, bn = self.ops, self.bn
            eps = float(bn.eps)
            x, scale, shift, mean, _, unbiased, count = _Affine.apply(  # type: ignore[no-untyped-call]
                x, index, rowptr, bn.weight, bn.bias, size, relu, self.over, eps, ops, again
            )
            with torch.no_grad():
                _update_running(bn, mean, unbiased, count)
            return x, scale, shift
        return x, *running_affine(self.bn)
