"""How the sparse operators of a lowered graph become kernel calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.convolution import NEARLY_DENSE, dense_tile
from dsgc.codegen.cpu.layout import Geometry, blocks_of
from dsgc.codegen.cpu.neuron import far_table, neuron_depth, neuron_tile
from dsgc.codegen.cpu.pooling import pool_weights, pool_window
from dsgc.codegen.cpu.selection import FOUR, score_weight
from dsgc.codegen.families import Family
from dsgc.codegen.tiles import (
    BITS,
    DENSE_BLOCK,
    NEURON_LANES,
    PROJECTED_LANES,
    ROW_LANES,
    ranking_kernel,
    suits_few_rows,
)
from dsgc.exporter.errors import unsupported
from dsgc.exporter.program import View
from dsgc.exporter.sizes import BATCH
from dsgc.exporter.values import Chosen, Packed, Rows, Source
from dsgc.exporter.writer import Lists, Writer, filled
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.select import Selector

__all__ = ["check_selection", "convolution", "pack", "pool", "select"]

_CHUNK = 256  # target slots whose pairs are sorted at a time


def check_selection(selector: Selector) -> None:
    """Raise ExportError for a selection that is not the best blocks of each position, searched with
    a projection of pixels.
    """
    settings = selector.settings
    if settings.scope != "position" or tuple(settings.tile) != (1, 1):
        raise unsupported(
            f"layer {settings.name!r} selects the best of a {_scope(selector)}",
            'compile with scope="position" and without share_pool',
        )
    if settings.selector not in ("svd", "drs") or selector.by_window:
        how = settings.selector if not selector.by_window else f"{settings.selector} on windows"
        raise unsupported(
            f"layer {settings.name!r} is searched with {how!r}",
            'compile with selector="svd" or "drs" and projection="pixel"',
        )


def select(writer: Writer, selector: Selector, source: Source) -> Chosen:
    """The selection of a layer: search and ranking."""
    check_selection(selector)
    settings = selector.settings
    out_size = conv_output_size(
        source.size, selector.kernel, selector.stride, selector.padding, selector.dilation
    )
    positions = BATCH * (out_size[0] * out_size[1])
    scores = _scores(writer, selector, source, out_size)
    winners, blocks = selector.winners, selector.blocks
    ranking = ranking_kernel(blocks)
    if ranking is None:
        raise unsupported(
            f"layer {settings.name!r} has {blocks} blocks to rank", "choose larger blocks"
        )
    program = writer.program
    index = program.buffer(positions, winners, dtype="int32")
    program.call(families.lists(), ranking, scores, index)
    rowptr = program.buffer(positions + 1, dtype="int32")
    program.call(families.rows(), "equal_rows", rowptr, winners)
    slots = positions * winners
    return Chosen(index.seen_as(slots), rowptr, positions, slots, winners, winners / blocks)


def _scope(selector: Selector) -> str:
    return "pooling window" if selector.settings.scope == "position" else selector.settings.scope


def _scores(writer: Writer, selector: Selector, source: Source, out_size: Sequence[int]) -> View:
    program = writer.program
    search = selector.search()
    projection, projected, unit, offset = search[:4]
    block, kernel, stride, padding, dilation = search[5:]
    geometry = Geometry.forward(source.size[1:], out_size, kernel, stride, padding, dilation)
    z, peak, lanes = _project(writer, source, projection)
    pixels = BATCH * geometry.source_area
    depth = ceil_div(projection.shape[1], FOUR) * FOUR
    as_bytes = writer.target.byte_dots
    rows = program.buffer(pixels + 1, depth, dtype="uint8" if as_bytes else "float32")
    step = program.buffer(BATCH)
    program.call(families.dense_search(), "round_rows", z.seen_as(pixels, lanes), peak, rows, step)
    weight, first = score_weight(projected, depth, torch.uint8 if as_bytes else torch.float32)
    length = weight.shape[2]
    scores = program.buffer(BATCH * geometry.target_area, selector.blocks)
    program.call(
        families.blocked(block),
        f"block_scores_{block}",
        rows.seen_as(pixels + 1, depth // FOUR, dtype="int32") if as_bytes else rows,
        writer.constant(weight, "search_weight"),
        writer.constant(first, "search_first"),
        writer.constant(filled(unit, length), "search_unit"),
        writer.constant(
            torch.zeros(length) if offset is None else filled(offset, length), "search_offset"
        ),
        step,
        scores,
        writer.table(geometry),
        geometry.source_area,
    )
    return scores


def _project(writer: Writer, source: Source, projection: Tensor) -> tuple[View, View, int]:
    """Every pixel in the reduced space, the largest magnitude of each, and the lanes of a row."""
    program, depth = writer.program, projection.shape[1]
    channels = source.size[0]
    if isinstance(source.x, Rows) or source.chosen is None:
        x = writer.wide(writer.dense(source))
        lanes = ceil_div(depth, DENSE_BLOCK) * DENSE_BLOCK
        vectors = x.width // DENSE_BLOCK
        z = program.buffer(x.positions, lanes // DENSE_BLOCK, DENSE_BLOCK)
        peak = program.buffer(x.positions)
        program.call(
            families.dense_search(),
            "project_dense",
            x.view.seen_as(x.positions, vectors, DENSE_BLOCK),
            writer.constant(blocks_of(None, channels, DENSE_BLOCK, 1.0), "one"),
            writer.constant(blocks_of(None, channels, DENSE_BLOCK), "zero"),
            writer.constant(
                _matrix(projection, x.width, lanes).view(-1, lanes // DENSE_BLOCK, DENSE_BLOCK),
                "projection",
            ),
            z,
            peak,
            float("-inf"),
            float("-inf"),
        )
        return z, peak, lanes
    block, chosen = source.x.block, source.chosen
    blocks = ceil_div(channels, block)
    lanes = ceil_div(depth, PROJECTED_LANES) * PROJECTED_LANES
    matrix = _matrix(projection, blocks * block, lanes).view(blocks, block, -1, PROJECTED_LANES)
    z = program.buffer(chosen.positions, lanes // PROJECTED_LANES, PROJECTED_LANES)
    peak = program.buffer(chosen.positions)
    program.call(
        families.blocked(block),
        f"project_{block}",
        writer.activate(source),
        *(chosen.ids, chosen.rowptr, writer.constant(matrix, "projection"), z, peak),
    )
    return z, peak, lanes


def _matrix(projection: Tensor, channels: int, lanes: int) -> Tensor:
    missing = (0, lanes - projection.shape[1], 0, channels - projection.shape[0])
    return F.pad(projection.to(torch.float32), missing)


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
    if _is_few_rows(weight, geometry, block, batch):
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
