"""From operator arguments to what kernels read: plain contiguous float32 and int32 tensors."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.libraries import Libraries
from dsgc.codegen.tiles import BITS, DENSE_BLOCK
from dsgc.errors import UnsupportedError
from dsgc.ops.layout import ceil_div, is_bitmask
from dsgc.ops.spec import Activation

__all__ = [
    "LIST_LENGTH",
    "Geometry",
    "Lists",
    "Selection",
    "blocks_of",
    "by_block",
    "check_float32",
    "dense_rows",
    "every_block",
    "limits",
    "marked_blocks",
    "new_dense",
    "packed_selection",
    "padded_channels",
    "part_present",
    "row_pointers",
    "selection",
    "tasks_for",
]

_INFINITY = float("inf")
# Slots a list should have: enough positions to pay for fetching a block's weights.
LIST_LENGTH = 2048
_WORD = 4  # bytes of a bitmask that are expanded at a time


class Selection(NamedTuple):
    """The blocks of every position: ``ids`` int32 [nnz], ascending within a row; ``rowptr`` int32
    [P + 1].
    """

    ids: Tensor
    rowptr: Tensor

    @property
    def positions(self) -> int:
        return self.rowptr.shape[0] - 1

    def density(self, blocks: int) -> float:
        """The part present of ``blocks`` at every position."""
        return self.ids.shape[0] / max(1, self.positions * blocks)


class Lists(NamedTuple):
    """Slots sorted by (tile of positions, block); see :mod:`dsgc.codegen.kernels.lists`."""

    start: Tensor
    slot: Tensor
    sample: Tensor
    pixel: Tensor


class Geometry(NamedTuple):
    """Which source pixel each tap of a target pixel touches, a convolution or a transposed one.

    The source pixel of target pixel ``h`` at tap ``r`` is ``(h * mul + off + r * step) / div``; a
    division with remainder means that the tap does not touch any.
    """

    source: tuple[int, int]
    target: tuple[int, int]
    kernel: tuple[int, int]
    mul: tuple[int, int]
    off: tuple[int, int]
    step: tuple[int, int]
    div: tuple[int, int]

    @classmethod
    def forward(
        cls,
        source: Sequence[int],
        target: Sequence[int],
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> Geometry:
        """From an output pixel to the input pixels of its window."""
        return cls(
            (source[0], source[1]),
            (target[0], target[1]),
            (kernel[0], kernel[1]),
            (stride[0], stride[1]),
            (-padding[0], -padding[1]),
            (dilation[0], dilation[1]),
            (1, 1),
        )

    def transposed(self) -> Geometry:
        """From an input pixel to the output pixels whose windows hold it."""
        return Geometry(
            self.target,
            self.source,
            self.kernel,
            (1, 1),
            (-self.off[0], -self.off[1]),
            (-self.step[0], -self.step[1]),
            self.mul,
        )

    @property
    def source_area(self) -> int:
        """Source pixels of a sample."""
        return self.source[0] * self.source[1]

    @property
    def target_area(self) -> int:
        """Target pixels of a sample."""
        return self.target[0] * self.target[1]

    @functools.lru_cache(maxsize=256)  # noqa: B019  # a NamedTuple: equal ones share an entry
    def table(self) -> Tensor:
        """int32 [taps, target pixels]: the source pixel of the same sample, or -1."""
        down, across = self._axis(0), self._axis(1)
        pixels = down[:, None, :, None] * self.source[1] + across[None, :, None, :]
        hit = (down >= 0)[:, None, :, None] & (across >= 0)[None, :, None, :]
        table = torch.where(hit, pixels, -1).view(-1, self.target_area)
        return table.to(torch.int32)

    def _axis(self, axis: int) -> Tensor:
        """[taps, target extent]: the source index along one axis, or -1."""
        target = torch.arange(self.target[axis]) * self.mul[axis] + self.off[axis]
        at = target + torch.arange(self.kernel[axis])[:, None] * self.step[axis]
        index = at.div(self.div[axis], rounding_mode="floor")
        exact = index * self.div[axis] == at
        return torch.where(exact & (at >= 0) & (index < self.source[axis]), index, -1)


def check_float32(x: Tensor) -> None:
    """Raises UnsupportedError unless ``x`` is a float32 tensor on the CPU."""
    if x.dtype is not torch.float32 or not x.is_cpu:
        raise UnsupportedError(
            f"generated kernels take float32 on the CPU, not {x.dtype} on {x.device}; "
            'convert the model and its inputs, or compile with backend="reference"'
        )


def limits(act: str) -> tuple[float, float]:
    """The lower bounds before and after the affine part that make up an activation."""
    low = 0.0 if act == "relu_affine" else -_INFINITY
    high = 0.0 if act in ("relu", "affine_relu") else -_INFINITY
    return low, high


def blocks_of(vector: Tensor | None, channels: int, block: int, fill: float = 0.0) -> Tensor:
    """A per-channel vector as ``[blocks, block]``; lanes beyond the last channel are zero; all
    ``fill`` for None. Only to be read: others may have been given the same memory.
    """
    blocks = ceil_div(channels, block)
    if vector is None:
        kept = _kept_constant(blocks, block, fill)
        # One that was first asked for where tensors have no memory is of no use elsewhere.
        return kept if type(kept) is Tensor else _constant(blocks, block, fill)
    check_float32(vector)
    if vector.shape[0] == blocks * block and vector.is_contiguous():
        return vector.view(blocks, block)
    out = torch.zeros(blocks * block, dtype=torch.float32)
    out[:channels] = vector
    return out.view(blocks, block)


def _constant(blocks: int, block: int, fill: float) -> Tensor:
    with torch.inference_mode(False):
        return torch.full((blocks, block), fill, dtype=torch.float32, device="cpu")


_kept_constant = functools.lru_cache(maxsize=64)(_constant)


def selection(libraries: Libraries, index: Tensor, rowptr: Tensor) -> Selection:
    """A selection of either form as lists."""
    rowptr = rowptr.contiguous()
    if not is_bitmask(index):
        return Selection(index.contiguous(), rowptr)

    def expand(bits: Tensor) -> Tensor:
        words = torch.nn.functional.pad(bits, (0, -bits.shape[1] % _WORD)).view(torch.int32)
        out = torch.empty(int(rowptr[-1]), dtype=torch.int32)
        libraries(families.lists(), "expand_bits")(words, rowptr, out)
        return out

    # Operators that follow each other read the same few selections.
    return Selection(libraries.recall(index, expand), rowptr)


def packed_selection(libraries: Libraries, source: Activation) -> Selection:
    """The selection of an activation that is packed.

    Raises UnsupportedError for one that is not.
    """
    if source.index is None or source.rowptr is None:
        raise UnsupportedError("a packed activation is needed, and this one is dense")
    return selection(libraries, source.index, source.rowptr)


@functools.lru_cache(maxsize=4)
def every_block(positions: int, blocks: int) -> Selection:
    """The selection of all blocks everywhere: how a dense map looks to a packed kernel.

    Only to be read: the next call may give the same tensors.
    """
    index = torch.arange(blocks, dtype=torch.int32).repeat(positions)
    rowptr = torch.arange(0, (positions + 1) * blocks, blocks, dtype=torch.int32)
    return Selection(index, rowptr)


def row_pointers(counts: Tensor) -> Tensor:
    """Where each of the lists that are ``counts`` long begins, one after the other, and the end."""
    pointers = torch.zeros(counts.numel() + 1, dtype=torch.int32)
    torch.cumsum(counts.view(-1), 0, dtype=torch.int32, out=pointers[1:])
    return pointers


def by_block(
    libraries: Libraries,
    chosen: Selection,
    blocks: int,
    area: int,
    tile: int | None = None,
    length: int = LIST_LENGTH,
) -> Lists:
    """Lists of the slots of every block, for samples of ``area`` positions.

    They are cut into tiles of positions, by default as many as make lists of ``length`` slots.
    """
    index, rowptr = chosen
    slots, positions = index.shape[0], chosen.positions
    if tile is None:
        tile = max(256, length * positions * blocks // max(slots, 1))
    tiles = ceil_div(positions, tile)
    cursor = torch.empty((tiles, blocks), dtype=torch.int32)
    start = torch.empty(tiles * blocks + 1, dtype=torch.int32)
    slot, sample, pixel = torch.empty((3, slots), dtype=torch.int32).unbind()
    place = libraries(families.lists(), "list_slots")
    place(index, rowptr, cursor, start, slot, sample, pixel, tile, area)
    return Lists(start, slot, sample, pixel)


def part_present(source: Activation) -> float:
    """Which part of its blocks an activation has: all of them if it is dense."""
    if source.rowptr is None:
        return 1.0
    whole = (source.rowptr.shape[0] - 1) * ceil_div(source.size[0], source.x.shape[1])
    return source.x.shape[0] / max(1, whole)


def marked_blocks(libraries: Libraries, chosen: Selection, blocks: int) -> Tensor:
    """Which of ``blocks`` each position has, a bit each: int32 [P, blocks / BITS, rounded up]."""
    bits = torch.empty((chosen.positions, ceil_div(blocks, BITS)), dtype=torch.int32)
    libraries(families.lists(), "mark_blocks")(*chosen, bits)
    return bits


def new_dense(batch: int, size: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised [batch, C, H, W] in channels-last order."""
    return torch.empty((batch, *size), dtype=dtype, memory_format=torch.channels_last)


def dense_rows(x: Tensor) -> Tensor:
    """A dense [N, C, H, W] as contiguous rows [N * H * W, C]; a view of a channels-last tensor."""
    batch, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last):
        return x.as_strided((batch * height * width, channels), (channels, 1))
    return x.permute(0, 2, 3, 1).reshape(-1, channels).contiguous()


def padded_channels(rows: Tensor, multiple: int = DENSE_BLOCK) -> Tensor:
    """Rows [P, C] with zeros up to a ``multiple`` of channels; itself if nothing is missing."""
    missing = -rows.shape[1] % multiple
    return torch.nn.functional.pad(rows, (0, missing)) if missing else rows


def tasks_for(slots: int) -> int:
    """Into how many partial sums a reduction over slots is cut: the same for every thread count."""
    return max(1, min(64, slots // 512))
