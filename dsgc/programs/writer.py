"""Writes what several operators need: rows, activated values, lists by block."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.layout import LIST_LENGTH, Geometry, blocks_of, limits
from dsgc.codegen.target import CpuTarget
from dsgc.codegen.tiles import DENSE_BLOCK
from dsgc.ops.layout import ceil_div as ceil_blocks
from dsgc.programs.program import Program, View
from dsgc.programs.sizes import BATCH, ceil_div
from dsgc.programs.values import Chosen, Packed, Rows, Source, row_width

__all__ = ["Lists", "Writer", "filled"]

Lists = tuple[View, View, View, View]


class Writer:
    """A program being written for one target.

    Args:
        target: the CPU that the program is for.
        samples: of the batch that kernels are chosen for.
    """

    def __init__(self, target: CpuTarget, samples: int) -> None:
        self.target = target
        self.samples = samples
        self.program = Program()
        self._settled: dict[Rows, Rows] = {}
        self._acting: dict[tuple[object, ...], Rows] = {}
        self._activated: dict[tuple[object, ...], View] = {}
        self._unpacked: dict[tuple[object, ...], Rows] = {}

    def constant(self, tensor: Tensor, name: str) -> View:
        """A constant, named after the layer that is being written."""
        return self.program.constant(tensor, f"{self.program.layer}.{name}")

    def bias(self, bias: Tensor | None, channels: int, block: int, *, flat: bool = False) -> View:
        """The bias of a layer in blocks, zeros if it has none; `flat` in one dimension."""
        blocks = blocks_of(bias, channels, block)
        return self.constant(blocks.view(-1) if flat else blocks, "bias")

    def table(self, geometry: Geometry) -> View:
        """The source pixels of a window; equal windows share it."""
        return self.program.constant(geometry.table(), "table")

    def rows(
        self, size: tuple[int, int, int], matrix: bool = False, width: int | None = None
    ) -> Rows:
        """Fresh rows for a map of `size`, to be filled by a kernel that writes the last one too."""
        lanes = width or row_width(size[0])
        view = self.program.buffer(BATCH * (size[1] * size[2]) + 1, lanes)
        return Rows(view, size, matrix, closed=True)

    def wide(self, rows: Rows) -> Rows:
        """Settled rows of whole vectors: those of an image are filled up."""
        x = self.settle(rows)
        if x.width % DENSE_BLOCK == 0:
            return x
        made = self.rows(x.size, x.matrix, ceil_blocks(x.size[0], DENSE_BLOCK) * DENSE_BLOCK)
        area = x.size[1] * x.size[2]
        self.take(x, made, torch.arange(area, dtype=torch.int32), x.size[0])
        return made

    def alike(self, one: Rows, other: Rows) -> tuple[Rows, Rows]:
        """Both settled, with rows of one width."""
        settled = self.settle(one), self.settle(other)
        if settled[0].width == settled[1].width:
            return settled
        return self.wide(one), self.wide(other)

    def take(
        self,
        source: Rows,
        made: Rows,
        pixels: Tensor,
        channels: int,
        skip: int = 0,
        before: int = 0,
    ) -> None:
        """Fill `made` with `channels` of some pixels of `source`, from channel `skip` on, behind
        `before` channels of zeros; pixel -1 is zero.
        """
        table = self.program.constant(pixels, "pixels")
        area = source.size[1] * source.size[2]
        self.program.call(
            families.rows(),
            "take_rows",
            *(source.view, made.view, table, area, skip, before, channels),
        )

    def gather(
        self, source: Rows, made: Rows, pixels: Tensor, skip: Tensor, channels: Tensor
    ) -> None:
        """Fill channel `c` of pixel `p` of `made` with channel `skip[p] + channels[c]` of pixel
        `pixels[p]` of `source`; -1 among pixels or channels is zero.
        """
        padded = torch.full((made.width,), -1, dtype=torch.int32)
        padded[: len(channels)] = channels
        self.program.call(
            families.moves(),
            "gather_rows",
            source.view,
            made.view,
            self.program.constant(pixels.to(torch.int32), "pixels"),
            self.program.constant(skip.to(torch.int32), "skip"),
            self.program.constant(padded, "channels"),
            source.size[1] * source.size[2],
        )

    def settle(self, rows: Rows) -> Rows:
        """The same map with nothing left to apply, and its row of zeros."""
        if rows.act == "identity" and rows.closed:
            return rows
        if rows not in self._settled and rows.act == "identity":
            self.program.call(families.rows(), "close_rows", rows.view)
            self._settled[rows] = replace(rows, closed=True)
        if rows not in self._settled:
            if rows.fleeting:
                # Whoever reads the result may apply something again, others not.
                made = Rows(rows.view, rows.size, rows.matrix, closed=True)
            else:
                made = self.rows(rows.size, rows.matrix, rows.width)
            scale = (
                torch.ones(rows.size[0], dtype=torch.float32) if rows.scale is None else rows.scale
            )
            shift = (
                torch.zeros(rows.size[0], dtype=torch.float32) if rows.shift is None else rows.shift
            )
            self.program.call(
                families.rows(),
                "finish_rows",
                rows.view.seen_as(rows.positions, rows.width),
                *self._affine(rows.scale, filled(scale, rows.width), filled(shift, rows.width)),
                made.view,
                *limits(rows.act),
            )
            self._settled[rows] = made
        return self._settled[rows]

    def dense(self, source: Source) -> Rows:
        """What an operator reads, as activated rows."""
        if isinstance(source.x, Rows):
            x = source.x
            if source.act == "identity":
                return self.settle(x)
            if x.act != "identity":
                x = self.settle(x)
            return self.settle(self._with_act(x, source))
        return self.unpack(source)

    def _with_act(self, x: Rows, source: Source) -> Rows:
        """`x` with an activation; the same one for the same, so that it is applied once."""
        key = (x, source.act, id(source.scale), id(source.shift))
        if key not in self._acting:
            self._acting[key] = replace(
                x, act=source.act, scale=source.scale, shift=source.shift, closed=False
            )
        return self._acting[key]

    def unpack(self, source: Source) -> Rows:
        """Packed values as rows, activated."""
        packed, chosen = source.x, source.chosen
        if not isinstance(packed, Packed) or chosen is None:
            raise TypeError("only packed values can be unpacked")
        key = (packed, source.act, id(source.scale), id(source.shift))
        if key not in self._unpacked:
            made = self.rows(source.size)
            self.program.call(
                families.blocked(packed.block),
                f"unpack_{packed.block}",
                packed.view,
                chosen.ids,
                chosen.rowptr,
                *self.affine(source, packed.block),
                made.view,
                *limits(source.act),
            )
            self._unpacked[key] = made
        return self._unpacked[key]

    def activate(self, source: Source) -> View:
        """Packed values, activated."""
        packed, chosen = source.x, source.chosen
        if not isinstance(packed, Packed) or chosen is None:
            raise TypeError("only packed values are activated where they are")
        key = (packed, source.act, id(source.scale), id(source.shift))
        if source.act == "identity" or key in self._activated:
            return self._activated.get(key, packed.view)
        out = self._activated[key] = self.program.buffer(*packed.view.shape)
        self.program.call(
            families.blocked(packed.block),
            f"activate_{packed.block}",
            packed.view,
            chosen.ids,
            *self.affine(source, packed.block),
            out,
            *limits(source.act),
        )
        return out

    def affine(self, source: Source, block: int) -> tuple[View, View]:
        """Scale and shift of an activation in blocks."""
        channels = source.size[0]
        scale = blocks_of(source.scale, channels, block, 1.0)
        return self._affine(source.scale, scale, blocks_of(source.shift, channels, block))

    def _affine(self, given: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[View, View]:
        """Scale and shift as constants; all layers share the ones of `given` None, which do
        nothing.
        """
        if given is None:
            return self.program.constant(scale, "one"), self.program.constant(shift, "zero")
        return self.constant(scale, "scale"), self.constant(shift, "shift")

    def lists(self, chosen: Chosen, blocks: int, area: int, tile: int | None = None) -> Lists:
        """The slots of every block, as :func:`dsgc.codegen.cpu.layout.by_block`."""
        program = self.program
        if tile is None:
            tile = max(256, round(LIST_LENGTH / max(chosen.usual, 1e-6)))
        tiles = ceil_div(chosen.positions, tile)
        cursor = program.buffer(tiles, blocks, dtype="int32")
        start = program.buffer(tiles * blocks + 1, dtype="int32")
        slot, sample, pixel = (program.buffer(chosen.slots, dtype="int32") for _ in range(3))
        program.call(
            families.lists(),
            "list_slots",
            *(chosen.ids, chosen.rowptr, cursor, start, slot, sample, pixel, tile, area),
        )
        return start, slot, sample, pixel

    def pointers(self, counts: View) -> View:
        """Where lists of these lengths begin, and where the last one ends."""
        made = self.program.buffer(counts.shape[0] + 1, dtype="int32")
        self.program.call(families.rows(), "row_pointers", counts, made)
        return made


def filled(values: Tensor, length: int) -> Tensor:
    """A vector with zeros up to `length`."""
    return torch.nn.functional.pad(values.detach().to(torch.float32), (0, length - len(values)))
