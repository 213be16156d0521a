"""Generated kernels behind activate, pack and unpack, and their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.layout import (
    Selection,
    blocks_of,
    check_float32,
    dense_rows,
    every_block,
    limits,
    new_dense,
    padded_channels,
    selection,
    tasks_for,
)
from dsgc.codegen.cpu.libraries import Libraries, standalone
from dsgc.codegen.tiles import DENSE_BLOCK
from dsgc.ops.layout import ceil_div
from dsgc.ops.spec import Activation

__all__ = [
    "activate",
    "activate_backward",
    "apply",
    "apply_backward",
    "as_dense",
    "as_stored",
    "channel_totals",
    "grouped_source",
    "pack",
    "padded_source",
    "stored_values",
    "unpack",
    "unpack_backward",
]

_INFINITY = float("inf")


def apply(libraries: Libraries, x: Tensor, index: Tensor, source: Activation) -> Tensor:
    """The activated values of packed ``x`` [nnz, b]; ``x`` itself if there is nothing to do."""
    if source.act == "identity":
        return x
    block, channels = x.shape[1], source.size[0]
    out = libraries.empty(*x.shape)
    libraries(families.blocked(block), f"activate_{block}")(
        x,
        index,
        blocks_of(source.scale, channels, block, 1.0),
        blocks_of(source.shift, channels, block),
        out,
        *limits(source.act),
    )
    return out


def apply_backward(
    libraries: Libraries,
    grad: Tensor,
    x: Tensor,
    index: Tensor,
    source: Activation,
    own: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dscale, dshift) of :func:`apply`, for packed tensors.

    ``own``: nobody else reads ``grad``, and dx may take its place.
    """
    if source.act == "identity":
        return grad, grad.new_empty(0), grad.new_empty(0)
    block, channels = x.shape[1], source.size[0]
    scale = blocks_of(source.scale, channels, block, 1.0)
    dx = grad if own else libraries.empty(*x.shape)
    wanted = 0 if source.scale is None else channels
    dscale, dshift = (torch.empty(wanted, dtype=torch.float32) for _ in range(2))
    libraries(families.blocked(block), f"activate_backward_{block}")(
        grad,
        x,
        index,
        scale,
        blocks_of(source.shift, channels, block),
        dx,
        libraries.scratch("partial", (tasks_for(x.shape[0]), 2, *scale.shape)),
        dscale,
        dshift,
        *limits(source.act),
    )
    return dx, dscale, dshift


def _as_packed(x: Tensor) -> tuple[Tensor, Selection]:
    """A dense [N, C, H, W] as packed values with every block selected, tail lanes zero."""
    rows = dense_rows(x)
    positions, blocks = rows.shape[0], ceil_div(rows.shape[1], DENSE_BLOCK)
    return padded_channels(rows).view(-1, DENSE_BLOCK), every_block(positions, blocks)


def as_stored(
    libraries: Libraries, x: Tensor, index: Tensor | None, rowptr: Tensor | None
) -> tuple[Tensor, Selection]:
    """Packed values and their selection, whichever of the two forms ``x`` has."""
    if index is None or rowptr is None:
        return _as_packed(x)
    return x.contiguous(), selection(libraries, index, rowptr)


def stored_values(x: Tensor, index: Tensor | None) -> Tensor:
    """The values of :func:`as_stored` alone."""
    if index is not None:
        return x.contiguous()
    return padded_channels(dense_rows(x)).view(-1, DENSE_BLOCK)


def as_dense(rows: Tensor, batch: int, size: Sequence[int], multiple: int = DENSE_BLOCK) -> Tensor:
    """Rows padded to a ``multiple`` of channels as [batch, C, H, W] in channels-last order.

    The same memory where no padding has to go, else a copy; the inverse of :func:`_as_packed`.
    """
    channels, height, width = size
    lanes = ceil_div(channels, multiple) * multiple
    dense = rows.view(batch, height, width, lanes).permute(0, 3, 1, 2)
    if lanes == channels:
        return standalone(dense)
    return new_dense(batch, size, rows.dtype).copy_(dense[:, :channels])


def activate(libraries: Libraries, *arguments: object) -> Tensor:
    """``dsgc::activate``."""
    source = Activation(*arguments)  # type: ignore[arg-type]
    check_float32(source.x)
    if source.index is None or source.rowptr is None:
        values, chosen = _as_packed(source.x)
        out = _unshared(apply(libraries, values, chosen.ids, source), source.x)
        return as_dense(out, source.x.shape[0], source.size)
    x = source.x.contiguous()
    chosen = selection(libraries, source.index, source.rowptr)
    out = apply(libraries, x, chosen.ids, source)
    return _unshared(out, source.x)


def _unshared(out: Tensor, given: Tensor) -> Tensor:
    """``out``, copied if it is the memory of an argument: operators return memory of their own."""
    return out.clone() if out.data_ptr() == given.data_ptr() else out


def activate_backward(
    libraries: Libraries, grad: Tensor, *arguments: object, own: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """``dsgc::activate_backward``; ``own`` as in :func:`apply_backward`."""
    source = Activation(*arguments)  # type: ignore[arg-type]
    check_float32(source.x)
    if source.index is None or source.rowptr is None:
        values, chosen = _as_packed(source.x)
        upstream = stored_values(grad, None)
        dx, dscale, dshift = apply_backward(libraries, upstream, values, chosen.ids, source, own)
        dx = dx if own else _unshared(dx, grad)
        return as_dense(dx, source.x.shape[0], source.size), dscale, dshift
    chosen = selection(libraries, source.index, source.rowptr)
    upstream = grad.contiguous()
    dx, dscale, dshift = apply_backward(
        libraries, upstream, source.x.contiguous(), chosen.ids, source
    )
    return _unshared(dx, grad), dscale, dshift


def pack(libraries: Libraries, x: Tensor, index: Tensor, rowptr: Tensor, block: int) -> Tensor:
    """``dsgc::pack``."""
    check_float32(x)
    rows = dense_rows(x)
    chosen = selection(libraries, index, rowptr)
    rows = padded_channels(rows, block)
    values = libraries.empty(chosen.ids.shape[0], block)
    libraries(families.blocked(block), f"pack_{block}")(
        rows.view(rows.shape[0], rows.shape[1] // block, block), *chosen, values
    )
    return values


def padded_source(libraries: Libraries, source: Activation) -> Tensor:
    """The activated input as rows [P + 1, width], ``width`` whole vectors; padding and the last row
    are zero. It is scratch memory: good until the next call.
    """
    values, chosen = as_stored(libraries, source.x, source.index, source.rowptr)
    multiple = max(DENSE_BLOCK, values.shape[1])
    width = ceil_div(source.size[0], multiple) * multiple
    out = libraries.scratch("source", (chosen.positions + 1, width))
    _scatter(libraries, "unpack", values, chosen, source, out)
    return out


def grouped_source(libraries: Libraries, source: Activation, width: int) -> Tensor:
    """:func:`padded_source` cut into groups of ``width`` channels: [groups, P + 1, width]."""
    values, chosen = as_stored(libraries, source.x, source.index, source.rowptr)
    groups = ceil_div(max(source.size[0], values.shape[1]), width)
    out = libraries.scratch("source", (groups, chosen.positions + 1, width))
    _scatter(libraries, "unpack_groups", values, chosen, source, out)
    return out


def _scatter(
    libraries: Libraries,
    kernel: str,
    values: Tensor,
    chosen: Selection,
    source: Activation,
    out: Tensor,
) -> None:
    block, channels = values.shape[1], source.size[0]
    libraries(families.blocked(block), f"{kernel}_{block}")(
        values,
        *chosen,
        blocks_of(source.scale, channels, block, 1.0),
        blocks_of(source.shift, channels, block),
        out,
        *limits(source.act),
    )


def unpack(libraries: Libraries, *arguments: object) -> Tensor:
    """``dsgc::unpack``."""
    source = Activation(*arguments)  # type: ignore[arg-type]
    if source.index is None or source.rowptr is None:
        return activate(libraries, *arguments)
    check_float32(source.x)
    channels, height, width = source.size
    block = source.x.shape[1]
    chosen = selection(libraries, source.index, source.rowptr)
    rows = libraries.empty(chosen.positions, ceil_div(channels, block) * block)
    _scatter(libraries, "unpack", source.x.contiguous(), chosen, source, rows)
    return as_dense(rows, chosen.positions // (height * width), source.size, block)


def unpack_backward(
    libraries: Libraries, grad: Tensor, *arguments: object
) -> tuple[Tensor, Tensor, Tensor]:
    """``dsgc::unpack_backward``."""
    source = Activation(*arguments)  # type: ignore[arg-type]
    if source.index is None or source.rowptr is None:
        return activate_backward(libraries, grad, *arguments)
    block = source.x.shape[1]
    upstream = pack(libraries, grad, source.index, source.rowptr, block)
    chosen = selection(libraries, source.index, source.rowptr)
    return apply_backward(libraries, upstream, source.x.contiguous(), chosen.ids, source)


def channel_totals(
    libraries: Libraries, x: Tensor, index: Tensor, center: Tensor, low: float
) -> Tensor:
    """Sums of ``max(x, low) - center`` and of its square over all slots: [2, blocks, b]."""
    block = x.shape[1]
    partial = torch.empty((tasks_for(x.shape[0]), 2, *center.shape), dtype=torch.float32)
    libraries(families.blocked(block), f"channel_sums_{block}")(x, index, center, partial, low)
    return partial.sum(0)
