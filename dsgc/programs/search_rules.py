"""How a layer's selection becomes kernel calls: search and ranking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cpu.layout import Geometry, blocks_of
from dsgc.codegen.cpu.selection import FOUR, score_weight
from dsgc.codegen.tiles import DENSE_BLOCK, VECTOR, ranking_kernel
from dsgc.ops.layout import ceil_div, conv_output_size
from dsgc.programs.errors import unsupported
from dsgc.programs.program import View
from dsgc.programs.sizes import BATCH
from dsgc.programs.values import Chosen, Rows, Source
from dsgc.programs.writer import Writer, filled
from dsgc.select import Selector

__all__ = ["check_selection", "select"]


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
            torch.zeros(length, dtype=torch.float32) if offset is None else filled(offset, length),
            "search_offset",
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
    lanes = ceil_div(depth, VECTOR) * VECTOR
    matrix = _matrix(projection, blocks * block, lanes).view(blocks, block, -1, VECTOR)
    z = program.buffer(chosen.positions, lanes // VECTOR, VECTOR)
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
