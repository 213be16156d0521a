"""Convolution of packed activations: only selected input blocks meet only selected output blocks.

The unit of work is a *pair*: an output slot and an input slot that a kernel tap brings together,
``bi x bo`` multiply-adds. All pairs of one (output block, tap, input block) use the same weights.
So a task takes ``size`` positions that chose an output block at a time, sorts the pairs of a tap
into one bucket an input block (:mod:`dsgc.codegen.kernels.pairs`), and then runs through each
bucket with that block's weights (or their gradient) in registers: a multiply-add reads nothing from
memory but one broadcast value.

Which source pixel a tap touches is looked up: ``table[tap, pixel]`` is the source pixel of the
same sample, or -1; a sample has ``area`` source pixels. One kernel so serves every geometry, and
backward-data is the same kernel with the table of the transposed convolution.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.pairs import AHEAD, sort_pairs, whole_vectors
from dsgc.codegen.kernels.prefetch import fetch
from dsgc.codegen.kernels.register_tile import add_outer, add_to_row
from dsgc.codegen.tiles import gradient_block


def packed_convolution(
    bi: int, bo: int, held: int, by_vectors: bool, in_place: bool = False
) -> Any:
    """``y[slot] = bias + sum over taps and selected input blocks``, for target blocks of ``bo``.

    ``held`` rows of a block of weights are kept in registers at a time; pairs are sorted by
    vectors where the target can. ``in_place`` takes the weights of a block as vectors of inputs,
    as channels-last weights have them, and turns them when it meets them.
    """
    name = f"packed_convolution_{bi}_{bo}{'_in_place' if in_place else ''}"
    rows = min(held, bi)
    stored = (bo, bi) if in_place else (bi, bo)

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        bits_h: T.handle,
        rowptr_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        y_h: T.handle,
        table_h: T.handle,
        area: T.int64,
        size: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        source_slots = T.int64()
        source_positions = T.int64()
        words = T.int64()
        source_rows = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        blocks_in = T.int64()
        starts = T.int64()
        slots = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        s2 = T.int64()
        s3 = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (source_slots, bi), "float32", align=4)
        bits = T.match_buffer(bits_h, (source_positions, words), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (source_rows,), "int32", align=4)
        w = T.match_buffer(
            w_h,
            (blocks_out, taps, blocks_in, T.int64(stored[0]), T.int64(stored[1])),
            "float32",
            strides=[s0, s1, s2, s3, T.int64(1)],
            align=4,
            offset_factor=1,
        )
        bias = T.match_buffer(bias_h, (blocks_out, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        y = T.match_buffer(y_h, (slots, bo), "float32", align=4)
        for task in T.parallel(starts - 1):
            n: T.let = task % blocks_out
            first: T.let = T.cast(start[task], "int64")
            length: T.let = T.cast(start[task + 1], "int64") - first
            span: T.let = whole_vectors(size)
            end = T.alloc_buffer((blocks_in,), "int32")
            source = T.alloc_buffer((blocks_in * span + AHEAD,), "int32")
            member = T.alloc_buffer((blocks_in * span + AHEAD,), "int32")
            room = T.alloc_buffer((3, span), "int32")
            for chunk in T.serial((length + (size - 1)) // size):
                begin: T.let = first + chunk * size
                members: T.let = T.min(first + length - begin, size)
                for i in T.serial(members):
                    for v in T.vectorized(bo):
                        y[T.cast(slot[begin + i], "int64"), v] = bias[n, v]
                for tap in T.serial(taps):
                    sort_pairs(
                        *(by_vectors, x, bits, room, end),
                        *(rowptr, slot, sample, pixel, table, area),
                        *(tap, begin, members, source, member),
                    )
                    for c in T.serial(blocks_in):
                        if by_vectors:
                            for j in T.unroll(AHEAD):
                                following: T.let = T.cast(source[(c + 1) * span + j], "int64")
                                T.evaluate(fetch(T.address_of(x[following, 0])))
                        bucket: T.let = T.cast(end[c], "int64") - c * span
                        # An empty bucket is no reason to read weights.
                        if bucket > 0:
                            for part in T.serial(bi // rows):
                                kept = T.alloc_buffer((rows, bo), "float32")
                                # Meanwhile the same part of the next block is fetched.
                                if in_place:
                                    turned = T.alloc_buffer((bo, rows), "float32")
                                    for v in T.unroll(bo):
                                        for s in T.vectorized(rows):
                                            turned[v, s] = w[n, tap, c, v, part * rows + s]
                                        ahead: T.let = T.address_of(
                                            w[n, tap, c + 1, v, part * rows]
                                        )
                                        T.evaluate(fetch(ahead))
                                    for s in T.unroll(rows):
                                        for v in T.vectorized(bo):
                                            kept[s, v] = turned[v, s]
                                else:
                                    for s in T.unroll(rows):
                                        for v in T.vectorized(bo):
                                            kept[s, v] = w[n, tap, c, part * rows + s, v]
                                        behind: T.let = T.address_of(
                                            w[n, tap, c + 1, part * rows + s, 0]
                                        )
                                        T.evaluate(fetch(behind))
                                for i in T.serial(bucket):
                                    q: T.let = T.cast(source[c * span + i], "int64")
                                    out: T.let = T.cast(member[c * span + i], "int64")
                                    if by_vectors:
                                        # Beyond the bucket lies what an earlier one left there.
                                        later: T.let = T.cast(source[c * span + i + AHEAD], "int64")
                                        T.evaluate(fetch(T.address_of(x[later, 0])))
                                    add_to_row(y, out, x, q, part * rows, kept, rows, bo)

    return kernel


def packed_weight_gradient(bi: int, bo: int, held: int, by_vectors: bool) -> Any:
    """``dw[n, tap, c] += outer(x[q, c], dy[p, n])`` over the positions that chose ``n`` and whose
    neighbour chose ``c``.

    A task owns one output block and one tap, and sums them in memory of its own, whatever the order
    of ``dw``. ``held`` rows of a block of the gradient are accumulated in registers at a time: in
    two buffers, since one as large is kept in memory. A row is a vector of inputs, as channels-last
    weights have them, unless an output block is larger.
    """
    name = f"packed_weight_gradient_{bi}_{bo}"
    by_input, depth, lanes = gradient_block(bi, bo)
    rows = min(held, depth)
    half = max(1, rows // 2)

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        bits_h: T.handle,
        rowptr_h: T.handle,
        dy_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        dw_h: T.handle,
        table_h: T.handle,
        area: T.int64,
        size: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        source_slots = T.int64()
        source_positions = T.int64()
        words = T.int64()
        source_rows = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        blocks_in = T.int64()
        starts = T.int64()
        slots = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        s2 = T.int64()
        s3 = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (source_slots, bi), "float32", align=4)
        bits = T.match_buffer(bits_h, (source_positions, words), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (source_rows,), "int32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        dw = T.match_buffer(
            dw_h,
            (blocks_out, taps, blocks_in, T.int64(depth), T.int64(lanes)),
            "float32",
            strides=[s0, s1, s2, s3, T.int64(1)],
            align=4,
            offset_factor=1,
        )
        for task in T.parallel(blocks_out * taps):
            n: T.let = task // taps
            tap: T.let = task % taps
            span: T.let = whole_vectors(size)
            end = T.alloc_buffer((blocks_in,), "int32")
            source = T.alloc_buffer((blocks_in * span + AHEAD,), "int32")
            member = T.alloc_buffer((blocks_in * span + AHEAD,), "int32")
            room = T.alloc_buffer((3, span), "int32")
            total = T.alloc_buffer((blocks_in, depth, lanes), "float32")
            for c in T.serial(blocks_in):
                for s in T.serial(depth):
                    for v in T.vectorized(lanes):
                        total[c, s, v] = T.float32(0)
            for tile in T.serial((starts - 1) // blocks_out):
                first: T.let = T.cast(start[tile * blocks_out + n], "int64")
                last: T.let = T.cast(start[tile * blocks_out + n + 1], "int64")
                for chunk in T.serial((last - first + (size - 1)) // size):
                    begin: T.let = first + chunk * size
                    sort_pairs(
                        *(by_vectors, x, bits, room, end),
                        *(rowptr, slot, sample, pixel, table, area),
                        *(tap, begin, T.min(last - begin, size), source, member),
                    )
                    for c in T.serial(blocks_in):
                        if by_vectors:
                            for j in T.unroll(AHEAD):
                                following: T.let = T.cast(source[(c + 1) * span + j], "int64")
                                T.evaluate(fetch(T.address_of(x[following, 0])))
                        for part in T.serial(depth // rows):
                            low = T.alloc_buffer((half, lanes), "float32")
                            high = T.alloc_buffer((half, lanes), "float32")
                            for s in T.unroll(half):
                                for v in T.vectorized(lanes):
                                    low[s, v] = total[c, part * rows + s, v]
                                if rows > 1:
                                    for v in T.vectorized(lanes):
                                        high[s, v] = total[c, part * rows + half + s, v]
                            for i in T.serial(T.cast(end[c], "int64") - c * span):
                                q: T.let = T.cast(source[c * span + i], "int64")
                                out: T.let = T.cast(member[c * span + i], "int64")
                                if by_vectors:
                                    later: T.let = T.cast(source[c * span + i + AHEAD], "int64")
                                    T.evaluate(fetch(T.address_of(x[later, 0])))
                                if by_input:
                                    add_outer(
                                        *(low, high, dy, out, x, q, part * rows),
                                        *(rows, half, lanes),
                                    )
                                else:
                                    add_outer(
                                        *(low, high, x, q, dy, out, part * rows),
                                        *(rows, half, lanes),
                                    )
                            for s in T.unroll(half):
                                for v in T.vectorized(lanes):
                                    total[c, part * rows + s, v] = low[s, v]
                                if rows > 1:
                                    for v in T.vectorized(lanes):
                                        total[c, part * rows + half + s, v] = high[s, v]
            for s in T.serial(depth):
                for c in T.serial(blocks_in):
                    for v in T.vectorized(lanes):
                        dw[n, tap, c, s, v] = total[c, s, v]

    return kernel
