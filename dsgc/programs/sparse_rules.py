"""How the sparse operators of a lowered graph become kernel calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.convolution import NEARLY_DENSE, dense_tile
from dsgc.codegen.cpu.layout import Geometry, limits
from dsgc.codegen.cpu.neuron import far_table, neuron_depth, neuron_tile
from dsgc.codegen.cpu.pooling import pool_weights, pool_window
from dsgc.codegen.families import Family
from dsgc.codegen.tiles import (
    BITS,
    NEURON_LANES,
    PAIRS_BELOW,
    ROW_LANES,
    suits_few_rows,
)
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.programs.errors import unsupported
from dsgc.programs.program import View
from dsgc.programs.sizes import BATCH
from dsgc.programs.values import Chosen, Packed, Rows, Source
from dsgc.programs.writer import Lists, Writer

__all__ = ["convolution", "pack", "pool", "residual_add"]

_INFINITY = float("inf")
_CHUNK = 256  # target slots whose pairs are sorted at a time


def convolution(
    writer: Writer,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    target: Chosen,
    block: int,
    window: tuple[Sequence[int], Sequence[int], Sequence[int]],
    batch: int,
) -> Packed:
    """The selected blocks of a convolution or linear layer; `batch` is the example's."""
    size = conv_output_size(source.size, weight.shape[2:], *window)
    geometry = Geometry.forward(source.size[1:], size, weight.shape[2:], *window)
    out = writer.program.buffer(target.slots, block)
    made = Packed(out, block)
    if _is_few_rows(weight, geometry, block, batch) and not _skips_pairs(source, block):
        _row_products(writer, source, weight, bias, target, made)
    elif block == 1:
        _neurons(writer, source, weight, bias, target, made, geometry)
    elif source.chosen is None or _reads_dense(source.x, source.chosen):
        _from_dense(writer, source, weight, bias, target, made, geometry)
    else:
        _from_packed(writer, source, weight, bias, target, made, geometry)
    return made


def _reads_dense(x: Rows | Packed, chosen: Chosen) -> bool:
    return isinstance(x, Packed) and x.block > 1 and chosen.usual > NEARLY_DENSE


def _is_few_rows(weight: Tensor, geometry: Geometry, block: int, batch: int) -> bool:
    whole = (
        geometry.target == (1, 1)
        and geometry.source == geometry.kernel
        and geometry.off == (0, 0)
        and geometry.step == (1, 1)
    )
    return whole and suits_few_rows(batch, weight[0].numel(), weight.shape[0], block)


def _skips_pairs(source: Source, block: int) -> bool:
    """Whether a linear layer of few rows is better off reading only weights of blocks that are in
    its input as well, which lie side by side here.
    """
    packed = isinstance(source.x, Packed) and source.x.block > 1 and source.size[1:] == (1, 1)
    return packed and block > 1 and source.chosen is not None and source.chosen.usual < PAIRS_BELOW


def _row_products(
    writer: Writer,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    target: Chosen,
    made: Packed,
) -> None:
    x = writer.wide(writer.dense(source))
    block, area = made.block, x.size[1] * x.size[2]
    outputs, channels = weight.shape[:2]
    # Rows hold a sample pixel by pixel; the weight is put in that order once.
    ordered = F.pad(weight.detach().permute(0, 2, 3, 1), (0, x.width - channels))
    vectors = ordered[0].numel() // ROW_LANES
    start, slot, sample, _ = _sample_lists(writer, target, outputs // block)
    writer.program.call(
        families.linear(block),
        f"row_products_{block}",
        x.view.seen_as(BATCH, area * x.width // ROW_LANES, ROW_LANES),
        writer.constant(ordered.reshape(-1, block, vectors, ROW_LANES), "weight"),
        writer.bias(bias, outputs, block),
        *(start, slot, sample, made.view),
    )


def _sample_lists(writer: Writer, target: Chosen, blocks: int) -> Lists:
    """One list a block over all samples, each a single position: a tile larger than any batch."""
    return writer.lists(target, blocks, 1, tile=1 << 40)


def _from_dense(
    writer: Writer,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    target: Chosen,
    made: Packed,
    geometry: Geometry,
) -> None:
    x = writer.wide(writer.dense(source))
    block, outputs = made.block, weight.shape[0]
    lists = writer.lists(
        target, ceil_div(outputs, block), geometry.target_area, dense_tile(x.width)
    )
    writer.program.call(
        families.dense(block),
        f"dense_convolution_{block}",
        x.view,
        writer.constant(_blocked(weight, x.width, 1, block).flatten(2, 3), "weight"),
        writer.bias(bias, outputs, block),
        *lists,
        made.view,
        writer.table(geometry),
        geometry.source_area,
    )


def _from_packed(
    writer: Writer,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    target: Chosen,
    made: Packed,
    geometry: Geometry,
) -> None:
    chosen = source.chosen
    if chosen is None or not isinstance(source.x, Packed):
        raise TypeError("a packed source is needed")
    bi, block, outputs = source.x.block, made.block, weight.shape[0]
    values = writer.activate(source)
    lists = writer.lists(target, ceil_div(outputs, block), geometry.target_area)
    words = ceil_div(ceil_div(weight.shape[1], bi), BITS)
    bits = writer.program.buffer(chosen.positions, words, dtype="int32")
    writer.program.call(families.lists(), "mark_blocks", chosen.ids, chosen.rowptr, bits)
    writer.program.call(
        families.convolution(bi, block),
        f"packed_convolution_{bi}_{block}",
        *(values, bits, chosen.rowptr),
        writer.constant(_blocked(weight, weight.shape[1], bi, block), "weight"),
        writer.bias(bias, outputs, block),
        *lists,
        made.view,
        writer.table(geometry),
        geometry.source_area,
        _CHUNK,
    )


def _neurons(
    writer: Writer,
    source: Source,
    weight: Tensor,
    bias: Tensor | None,
    target: Chosen,
    made: Packed,
    geometry: Geometry,
) -> None:
    x = writer.wide(writer.dense(source))
    vectors = ceil_div(x.width, NEURON_LANES)
    depth = neuron_depth(vectors)
    groups = ceil_div(vectors, depth)
    lanes = groups * depth * NEURON_LANES
    program, outputs = writer.program, weight.shape[0]
    grouped = program.buffer(groups, x.positions + 1, depth, NEURON_LANES)
    program.call(
        families.rows(),
        "group_rows",
        x.view,
        grouped.seen_as(groups, x.positions + 1, depth * NEURON_LANES),
    )
    stored = F.pad(weight.detach().permute(0, 2, 3, 1), (0, lanes - weight.shape[1]))
    tile = neuron_tile(geometry, depth)
    lists = writer.lists(target, outputs, geometry.target_area, tile)
    program.call(
        families.neuron(),
        f"neuron_convolution_{depth}",
        grouped,
        writer.constant(stored.reshape(outputs, -1, groups, depth, NEURON_LANES), "weight"),
        writer.bias(bias, outputs, 1, flat=True),
        *lists,
        made.view.seen_as(target.slots),
        tile * target.widest,  # slots of a tile at most
        program.constant(far_table(geometry), "far_table"),
        geometry.source_area,
    )


def _blocked(weight: Tensor, channels: int, bi: int, bo: int) -> Tensor:
    """[K, C, R, S] as [K / bo, R * S, C / bi, bi, bo], zero beyond K and C."""
    outputs, inputs, taps = weight.shape[0], weight.shape[1], weight[0, 0].numel()
    blocks_out, blocks_in = ceil_div(outputs, bo), ceil_div(channels, bi)
    filled_up = weight.new_zeros(blocks_out * bo, blocks_in * bi, taps)
    filled_up[:outputs, :inputs] = weight.detach().flatten(2)
    parted = filled_up.view(blocks_out, bo, blocks_in, bi, taps)
    return parted.permute(0, 4, 2, 3, 1).contiguous()


def pool(
    writer: Writer,
    source: Source,
    mode: str,
    window: tuple[Sequence[int], Sequence[int], Sequence[int]],
    ceil_mode: bool,
    include_pad: bool,
    usual: float,
) -> tuple[Packed, Chosen]:
    """Pooled packed values and the union of the selections; `usual` is that union's density."""
    program, packed, chosen = writer.program, source.x, source.chosen
    if not isinstance(packed, Packed) or chosen is None:
        raise TypeError("a packed source is needed")
    values = writer.activate(source)
    block, channels = packed.block, source.size[0]
    geometry = pool_window(source.size, *window, ceil_mode)
    where = writer.table(geometry), geometry.source_area
    positions = BATCH * geometry.target_area
    single = (channels,) if block == 1 else ()
    counts = program.buffer(positions, dtype="int32")
    family: Family = families.blocked(1) if block == 1 else families.lists()
    kernel = "count_neurons" if block == 1 else "count_union"
    program.call(family, kernel, chosen.ids, chosen.rowptr, counts, *single, *where)
    rowptr = writer.pointers(counts)
    taps = len(geometry.table())
    widest = min(ceil_div(channels, block), taps * chosen.widest)
    slots = program.read(rowptr, positions * widest)
    ids = program.buffer(slots, dtype="int32")
    out = program.buffer(slots, block)
    argmax = program.buffer(slots if mode == "max" else 0, block, dtype="uint8")
    flat = partial(_flat, block)
    program.call(
        families.blocked(block),
        f"{mode}_pool_{block}",
        *(flat(values), chosen.ids, chosen.rowptr, ids, rowptr, flat(out), flat(argmax)),
        writer.constant(pool_weights(geometry, window[2], include_pad), "pool_weight"),
        *single,
        *where,
    )
    return Packed(out, block), Chosen(ids, rowptr, positions, slots, widest, usual)


def _flat(block: int, view: View) -> View:
    """Packed values as kernels take them: those of single neurons have no lanes."""
    return view.seen_as(view.shape[0]) if block == 1 else view


def pack(writer: Writer, rows: Rows, target: Chosen, block: int) -> Packed:
    """The selected blocks of a dense map."""
    x = writer.settle(rows)
    if x.width % block:
        raise unsupported(
            f"rows of {x.width} lanes are not whole blocks of {block}", "choose smaller blocks"
        )
    out = writer.program.buffer(target.slots, block)
    writer.program.call(
        families.blocked(block),
        f"pack_{block}",
        x.view.seen_as(x.positions, x.width // block, block),
        *(target.ids, target.rowptr, out),
    )
    return Packed(out, block)


def residual_add(writer: Writer, source: Source, shortcut: Rows, relu: bool) -> Rows:
    """A dense map plus packed values."""
    packed, chosen = source.x, source.chosen
    if not isinstance(packed, Packed) or chosen is None:
        raise TypeError("a packed source is needed")
    x = writer.settle(shortcut)
    made = writer.rows(x.size, x.matrix, x.width)
    writer.program.call(
        families.residual(packed.block),
        f"residual_add_{packed.block}",
        *(packed.view, chosen.ids, chosen.rowptr, *writer.affine(source, packed.block)),
        *(x.view, made.view, *limits(source.act)),
        0.0 if relu else -_INFINITY,
    )
    return made
