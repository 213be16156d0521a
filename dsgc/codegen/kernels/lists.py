"""Lists of selected slots sorted by block, so that a kernel can hold one block's weights and visit
its positions.

A *slot* is a row of a packed tensor. Positions are cut into tiles; within a tile, slots are ordered
by their block: ``start[tile * blocks + c] .. start[tile * blocks + c + 1]`` is the part of ``slot``
and ``position`` that belongs to block ``c``.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import BITS


def list_slots() -> Any:
    """Writes ``start``, ``slot`` and its ``sample`` and ``pixel``, each sample having ``area``
    positions and each tile ``tile``.

    ``cursor`` is room for the next free place of each list.
    """

    @T.prim_func(s_tir=True)
    def list_slots(
        index_h: T.handle,
        rowptr_h: T.handle,
        cursor_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        tile: T.int64,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": "list_slots", "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        tiles = T.int64()
        blocks = T.int64()
        starts = T.int64()
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        cursor = T.match_buffer(cursor_h, (tiles, blocks), "int32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        for t in T.parallel(tiles):
            for c in T.serial(blocks):
                cursor[t, c] = 0
            first: T.let = T.cast(rowptr[t * tile], "int64")
            last: T.let = T.cast(rowptr[T.min((t + 1) * tile, rows - 1)], "int64")
            for j in T.serial(last - first):
                c: T.let = T.cast(index[first + j], "int64")
                cursor[t, c] = cursor[t, c] + 1
        sum = T.alloc_scalar("int32")
        sum = T.int32(0)
        for i in T.serial(tiles * blocks):
            start[i] = sum
            sum = sum + cursor[i // blocks, i % blocks]
            cursor[i // blocks, i % blocks] = start[i]
        start[tiles * blocks] = sum
        for t in T.parallel(tiles):
            for i in T.serial(T.min(tile, rows - 1 - t * tile)):
                p: T.let = t * tile + i
                for j in T.serial(T.cast(rowptr[p + 1] - rowptr[p], "int64")):
                    s: T.let = T.cast(rowptr[p], "int64") + j
                    c: T.let = T.cast(index[s], "int64")
                    place: T.let = T.cast(cursor[t, c], "int64")
                    slot[place] = T.cast(s, "int32")
                    sample[place] = T.cast(p // area, "int32")
                    pixel[place] = T.cast(p % area, "int32")
                    cursor[t, c] = cursor[t, c] + 1

    return list_slots


def strip_edges() -> Any:
    """``edges[strip, sample]``: the first value of the sample whose block is in the strip or behind
    it, of strips of ``depth`` blocks; one strip more for the end.
    """

    @T.prim_func(s_tir=True)
    def strip_edges(index_h: T.handle, rowptr_h: T.handle, edges_h: T.handle, depth: T.int64):
        T.func_attr({"global_symbol": "strip_edges", "tirx.noalias": True})
        slots = T.int64()
        starts = T.int64()
        ends = T.int64()
        rows = T.int64()
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (starts,), "int32", align=4)
        edges = T.match_buffer(edges_h, (ends, rows), "int32", align=4)
        for i in T.serial(rows):
            strip = T.alloc_scalar("int64")
            strip = T.int64(0)
            for e in T.serial(rowptr[i], rowptr[i + 1]):
                while strip * depth <= T.cast(index[e], "int64"):
                    edges[strip, i] = e
                    strip = strip + 1
            while strip < ends:
                edges[strip, i] = rowptr[i + 1]
                strip = strip + 1

    return strip_edges


def expand_bits() -> Any:
    """Channel lists out of a bitmask: bit ``j`` of word ``i`` of a position stands for channel ``32
    * i + j``.
    """

    @T.prim_func(s_tir=True)
    def expand_bits(bits_h: T.handle, rowptr_h: T.handle, index_h: T.handle):
        T.func_attr({"global_symbol": "expand_bits", "tirx.noalias": True})
        positions = T.int64()
        width = T.int64()
        rows = T.int64()
        slots = T.int64()
        bits = T.match_buffer(bits_h, (positions, width), "int32", align=1)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        for p in T.parallel(positions):
            place = T.alloc_scalar("int64")
            rest = T.alloc_scalar("int32")
            place = T.cast(rowptr[p], "int64")
            for i in T.serial(width):
                rest = bits[p, i]
                while rest != 0:
                    lowest: T.let = T.call_llvm_pure_intrin(
                        "int32", "llvm.cttz.i32", rest, T.bool(True)
                    )
                    index[place] = T.cast(i * 32, "int32") + lowest
                    place = place + 1
                    rest = rest & (rest - 1)

    return expand_bits


def set_bits() -> Any:
    """The inverse of :func:`expand_bits`."""

    @T.prim_func(s_tir=True)
    def set_bits(index_h: T.handle, rowptr_h: T.handle, bits_h: T.handle):
        T.func_attr({"global_symbol": "set_bits", "tirx.noalias": True})
        positions = T.int64()
        width = T.int64()
        rows = T.int64()
        slots = T.int64()
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        bits = T.match_buffer(bits_h, (positions, width), "uint8", align=1)
        for p in T.parallel(positions):
            for i in T.serial(width):
                bits[p, i] = T.uint8(0)
            first: T.let = T.cast(rowptr[p], "int64")
            for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                c: T.let = T.cast(index[first + j], "int64")
                bits[p, c // 8] = bits[p, c // 8] | T.cast(
                    T.int32(1) << T.cast(c % 8, "int32"), "uint8"
                )

    return set_bits


def mark_blocks() -> Any:
    """Words of 32 blocks: bit ``c % 32`` of ``bits[position, c // 32]`` says that ``c`` is there.

    Like :func:`set_bits`, but for few blocks: a position's words are summed in a register.
    """

    @T.prim_func(s_tir=True)
    def mark_blocks(index_h: T.handle, rowptr_h: T.handle, bits_h: T.handle):
        T.func_attr({"global_symbol": "mark_blocks", "tirx.noalias": True})
        positions = T.int64()
        words = T.int64()
        rows = T.int64()
        slots = T.int64()
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        bits = T.match_buffer(bits_h, (positions, words), "int32", align=4)
        for p in T.parallel(positions):
            first: T.let = T.cast(rowptr[p], "int64")
            for word in T.serial(words):
                found = T.alloc_scalar("int32")
                found = 0
                for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                    c: T.let = index[first + j]
                    here: T.let = T.cast(c // BITS, "int64") == word
                    found = found | T.Select(here, T.int32(1) << (c % BITS), 0)
                bits[p, word] = found

    return mark_blocks
