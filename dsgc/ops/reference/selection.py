"""Reference kernels of drs_scores, select_winners and select_above."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.ops.layout import ceil_div, conv_output_size, mask_to_selection
from dsgc.ops.reference.activation import unpack

__all__ = [
    "above_mask",
    "block_scores",
    "drs_scores",
    "round_pixels",
    "select_above",
    "select_winners",
    "winners_mask",
]


def block_scores(estimate: Tensor, block: int) -> Tensor:
    """Scores [P, blocks] of estimates [N, K, H, W]: relu summed over blocks, raw for block 1."""
    rows = estimate.permute(0, 2, 3, 1).flatten(0, 2)
    if block == 1:
        return rows.contiguous()
    channels = rows.shape[1]
    blocks = ceil_div(channels, block)
    padded = F.pad(rows.relu(), (0, blocks * block - channels))
    return padded.view(-1, blocks, block).sum(2)


def drs_scores(
    x: Tensor,
    index: Tensor | None,
    rowptr: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    act: str,
    size: Sequence[int],
    projection: Tensor,
    projected: Tensor,
    unit: Tensor | None,
    offset: Tensor | None,
    out_channels: int,
    block: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Scores [P, blocks] of the convolution's outputs, estimated in the projected space.

    Pixel form: projection [C, d]; the projected weight [R*S, d, Kp] with Kp >= K is int8 and counts
    in units [Kp] of its neuron. Projected pixels are rounded to 8 bits as well, see `round_pixels`.
    Window form (as published): projection [C*R*S, k] in the order of `unfold`, projected [k, K], no
    unit. An offset [K] is added to the estimates before they become scores.
    """
    dense = unpack(x, index, rowptr, scale, shift, act, size)
    height, width = conv_output_size(size, kernel, stride, padding, dilation)
    matrix = projection.to(x.dtype)
    if projected.dim() == 2:
        windows = F.unfold(
            dense, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride)
        ).transpose(1, 2)
        estimate = (windows @ matrix) @ projected.to(x.dtype)
        estimate = estimate.transpose(1, 2).view(-1, out_channels, height, width)
        return block_scores(_moved(estimate, offset), block)
    if unit is None:
        raise ValueError("the pixel form needs the unit of every projected neuron")
    levels, step = round_pixels(torch.einsum("nchw,cd->ndhw", dense, matrix))
    taps = projected[..., :out_channels].to(x.dtype).permute(2, 1, 0)
    weight = taps.reshape(out_channels, -1, kernel[0], kernel[1])
    estimate = F.conv2d(levels, weight, None, stride, padding, dilation)
    estimate = estimate * unit[:out_channels].to(x.dtype).view(-1, 1, 1) * step
    return block_scores(_moved(estimate, offset), block)


def _moved(estimate: Tensor, offset: Tensor | None) -> Tensor:
    return estimate if offset is None else estimate + offset.to(estimate.dtype).view(-1, 1, 1)


def round_pixels(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [N, d, H, W] as whole levels from -127 to 127, and the step [N, 1, 1, 1] of a level.

    The largest magnitude of a sample is its level 127. A sample that is not finite has levels 0 and
    a step of NaN.
    """
    if pixels.numel() == 0:
        return pixels, pixels.new_zeros((pixels.shape[0], 1, 1, 1))
    peak = pixels.abs().amax((1, 2, 3), keepdim=True)
    peak = torch.where(peak.isfinite(), peak, torch.nan)
    inverse = torch.where(peak > 0, 127 / peak, torch.zeros_like(peak))
    levels = torch.where(inverse > 0, (pixels * inverse).round(), torch.zeros_like(pixels))
    return levels, peak / 127


def select_winners(
    scores: Tensor, winners: int, out_size: Sequence[int], tile: Sequence[int], bits: bool
) -> tuple[Tensor, Tensor]:
    """The `winners` best blocks of every tile, for all of its positions; ties go to the lower block
    id.

    NaN counts as infinity. A tile's score is the sum over its positions; tiles at the lower and
    right edge may be smaller. Raises ValueError unless 1 <= winners <= blocks.
    """
    return mask_to_selection(winners_mask(scores, winners, out_size, tile), bits)


def winners_mask(
    scores: Tensor, winners: int, out_size: Sequence[int], tile: Sequence[int]
) -> Tensor:
    """What `select_winners` selects, as bool [N, blocks, height, width]."""
    positions, blocks = scores.shape
    if not 1 <= winners <= blocks:
        raise ValueError(f"{winners} winners of {blocks} blocks")
    height, width = out_size
    down, across = ceil_div(height, tile[0]), ceil_div(width, tile[1])
    batch = positions // (height * width)
    maps = scores.view(batch, height, width, blocks)
    fill = (0, 0, 0, across * tile[1] - width, 0, down * tile[0] - height)
    tiles = F.pad(maps, fill).view(batch, down, tile[0], across, tile[1], blocks).sum((2, 4))
    # A sum of infinities of both signs is NaN as well: so NaN is replaced after summing.
    tiles = tiles.masked_fill(tiles.isnan(), torch.inf)
    best = torch.sort(tiles, dim=-1, descending=True, stable=True).indices[..., :winners]
    mask = torch.zeros_like(tiles, dtype=torch.bool).scatter(-1, best, True)
    mask = mask.repeat_interleave(tile[0], 1).repeat_interleave(tile[1], 2)[:, :height, :width]
    return mask.permute(0, 3, 1, 2)


def select_above(
    scores: Tensor, threshold: Tensor, strict: bool, bits: bool
) -> tuple[Tensor, Tensor]:
    """The blocks of scores [P, blocks] at or above their sample's threshold [N], or, if strict,
    above it.

    The strict form is the published rule: a score of exactly zero is never selected by it.
    """
    positions = scores.shape[0]
    per_sample = positions // max(threshold.shape[0], 1)
    return mask_to_selection(above_mask(scores, threshold, strict, (per_sample, 1)), bits)


def above_mask(scores: Tensor, threshold: Tensor, strict: bool, out_size: Sequence[int]) -> Tensor:
    """What `select_above` selects, as bool [N, blocks, height, width]."""
    maps = scores.view(threshold.shape[0], out_size[0], out_size[1], scores.shape[1])
    limit = threshold.view(-1, 1, 1, 1)
    mask = (maps > limit) & (maps != 0) if strict else maps >= limit
    return mask.permute(0, 3, 1, 2)
