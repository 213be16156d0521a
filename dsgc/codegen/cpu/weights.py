"""Weights between PyTorch's layout and blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.tiles import PLAIN_COLUMNS
from dsgc.ops.layout import ceil_div

__all__ = [
    "blocked_weight",
    "filled_gradient",
    "in_place",
    "padded_inputs",
    "plain_columns",
    "plain_weight",
    "tiled_weight",
]


# Times that a block of weights may be met before bringing its vectors together pays, where those of
# the next block lie beside them, and where they lie far away.
_FEW_VISITS, _FEW_VISITS_APART = 4.0, 2.0
_TILE_BYTES = 3 << 18  # weights of a register tile that should stay in the second-level cache


def _is_in_order(weight: Tensor, bi: int, bo: int) -> bool:
    """Whether ``weight`` [K, C, R, S] is stored as [K, R * S, C], and is whole blocks of inputs by
    outputs.
    """
    outputs, inputs = weight.shape[:2]
    stored = weight.permute(0, 2, 3, 1)
    return stored.is_contiguous() and outputs % bo == 0 and inputs % bi == 0


def _stored(weight: Tensor, bi: int, bo: int) -> Tensor:
    """A weight that :func:`_is_in_order` as [K / bo, bo, R * S, C / bi, bi]: the same memory."""
    (outputs, inputs), taps = weight.shape[:2], prod(weight.shape[2:])
    flat = weight.detach().permute(0, 2, 3, 1).view(-1)
    return flat.view(outputs // bo, bo, taps, inputs // bi, bi)


def in_place(weight: Tensor, bi: int, bo: int, visits: float) -> Tensor | None:
    """``weight`` [K, C, R, S] for a kernel that turns the vectors of inputs of a block itself, each
    time it meets one, ``visits`` times: [K / bo, R * S, C / bi, bo, bi], the same memory. None if
    it is not stored so, or laying it out once costs less.
    """
    if visits > _FEW_VISITS or bi == 1 or not _is_in_order(weight, bi, bo):
        return None
    return _stored(weight, bi, bo).permute(0, 2, 3, 1, 4)


def blocked_weight(
    libraries: Libraries,
    weight: Tensor,
    bi: int,
    bo: int,
    blocks: int | None = None,
    visits: float | None = None,
) -> Tensor:
    """``weight`` [K, C, R, S] as [K / bo, R * S, C / bi, bi, bo], zero beyond K; ``blocks`` asks
    for more of K / bo.

    For a kernel that takes strides and reads each block ``visits`` times it is the weight's own
    memory, where vectors of outputs lie in it side by side, as they do in the transposed weight of
    backward-data: unless bringing them together once costs less than fetching them so often.
    """
    swapped, enough = weight.transpose(0, 1), (blocks or 0) * bo <= weight.shape[0]
    few = visits is not None and visits <= _FEW_VISITS_APART
    if few and enough and _is_in_order(swapped, bo, bi):
        return _stored(swapped, bo, bi).permute(3, 2, 0, 1, 4)
    flat = weight.detach().flatten(2)
    outputs, inputs, taps = flat.shape
    shape = (blocks or ceil_div(outputs, bo), taps, ceil_div(inputs, bi), bi, bo)
    out = libraries.scratch("weight", shape)
    libraries(_weight_family(bi, bo), f"block_weights_{bi}_{bo}{_form(flat)}")(flat, out)
    return out


def filled_gradient(
    libraries: Libraries, weight: Tensor, shape: Sequence[int], fill: Callable[[Tensor], None]
) -> Tensor:
    """A gradient like ``weight`` [K, C, R, S] that ``fill`` writes as blocks of ``shape`` [K / bo,
    bo, R * S, C / bi, bi], or more of them, with any strides but the last: into its own memory
    where that is stored so.
    """
    bo, bi = shape[1], shape[4]
    if prod(shape) == weight.numel() and _is_in_order(weight, bi, bo):
        out = libraries.empty_like(weight)
        fill(_stored(out, bi, bo))
        return out
    # Its vectors are of inputs: blocks of the transposed weight.
    blocks, _, taps, blocks_in, _ = shape
    swapped = libraries.scratch("gradient", (blocks_in, taps, blocks, bo, bi))
    fill(swapped.permute(2, 3, 1, 0, 4))
    return plain_weight(libraries, swapped, weight.transpose(0, 1)).transpose(0, 1)


def plain_weight(libraries: Libraries, blocked: Tensor, like: Tensor) -> Tensor:
    """The inverse of :func:`blocked_weight`, shaped like ``like`` and stored in its order."""
    bi, bo = blocked.shape[3:]
    out = libraries.empty_like(like)
    flat = out.flatten(2)
    libraries(_weight_family(bi, bo), f"unblock_weights_{bi}_{bo}{_form(flat)}")(blocked, flat)
    if flat.data_ptr() != out.data_ptr():
        out.copy_(flat.view(out.shape))  # taps that do not follow each other
    return out


def _form(weight: Tensor) -> str:
    """Which channels of a flat weight [K, C, taps] lie side by side: the suffix of a kernel."""
    return "_by_input" if weight.stride(1) == 1 else "_by_output" if weight.stride(0) == 1 else ""


def _weight_family(bi: int, bo: int) -> families.Family:
    if bo == 1:
        return families.neuron()
    return families.dense(bo) if bi == 1 else families.convolution(bi, bo)


def padded_inputs(weight: Tensor, channels: int) -> Tensor:
    if weight.shape[1] == channels:
        return weight
    out = weight.new_zeros((weight.shape[0], channels, *weight.shape[2:]))
    out[:, : weight.shape[1]] = weight.detach()
    return out


def plain_columns(outputs: int, depth: int) -> int | None:
    """Outputs of a register tile of a dense convolution whose windows have ``depth`` values; None
    if ``outputs`` are not whole vectors.

    The widest whose weights stay in the cache, but no single vector where two would do.
    """
    *wide, vector = PLAIN_COLUMNS
    fitting = [columns for columns in wide if outputs % columns == 0]
    if not fitting:
        return vector if outputs % vector == 0 else None
    return next((c for c in fitting if 4 * depth * c <= _TILE_BYTES), fitting[-1])


def tiled_weight(weight: Tensor, width: int, columns: int) -> Tensor:
    """``weight`` [K, C, R, S] as [K / columns * R * S, width, columns], zero beyond C and K."""
    outputs, inputs = weight.shape[:2]
    missing = (0, width - inputs, 0, -outputs % columns)
    stored = F.pad(weight.detach().flatten(2).permute(2, 0, 1), missing)  # [R * S, K, width]
    taps, padded = stored.shape[:2]
    tiles = stored.reshape(taps, padded // columns, columns, width).permute(1, 0, 3, 2)
    return tiles.reshape(-1, width, columns).contiguous()
