"""Convolution of packed activations: only selected input blocks meet only selected output blocks.

The unit of work is a *pair*: an output slot and an input slot that a kernel tap brings together,
``bi x bo`` multiply-adds. All pairs of one (output block, tap, input block) use the same weights.
So a task takes ``size`` positions that chose an output block at a time, sorts the pairs of a tap
into one bucket an input block, and then runs through each bucket with that block's weights (or
their gradient) in registers: a multiply-add reads nothing from memory but one broadcast value.

Which source pixel a tap touches is looked up: ``table[tap, pixel]`` is the source pixel of the
same sample, or -1; a sample has ``area`` source pixels. One kernel so serves every geometry, and
backward-data is the same kernel with the table of the transposed convolution.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.prefetch import fetch

LOW_HALF = 0xFFFFFFFF  # a pair is one int64: the output slot above, the input slot below


@T.macro
def sort_pairs(
    x, index, rowptr, slot, sample, pixel, table, area, tap, begin, members, end, pair, size
):  # type: ignore[no-untyped-def]  # a macro: its arguments are buffers and expressions
    """Puts the pairs of ``members`` list entries with their neighbours at ``tap`` into ``pair``.

    Bucket ``c`` is ``pair[c * size .. end[c]]``. The input rows are fetched into the cache
    while their pairs are written.
    """
    for c in T.serial(end.shape[0]):
        end[c] = T.cast(c * size, "int32")
    for i in T.serial(members):
        near: T.let = table[tap, T.cast(pixel[begin + i], "int64")]
        if near >= 0:
            q: T.let = T.cast(sample[begin + i], "int64") * area + T.cast(near, "int64")
            low: T.let = T.cast(rowptr[q], "int64")
            own: T.let = T.cast(slot[begin + i], "int64") << T.int64(32)
            for j in T.serial(T.cast(rowptr[q + 1], "int64") - low):
                c: T.let = T.cast(index[low + j], "int64")
                at: T.let = T.cast(end[c], "int64")
                pair[at] = (low + j) | own
                end[c] = end[c] + 1
                T.evaluate(fetch(T.address_of(x[low + j, 0])))


def packed_convolution(bi: int, bo: int, held: int) -> Any:
    """``y[slot] = bias + sum over taps and selected input blocks``, for target blocks of ``bo``.

    ``held`` rows of a block of weights are kept in registers at a time.
    """
    name = f"packed_convolution_{bi}_{bo}"
    rows = min(held, bi)

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
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
        source_slots_index = T.int64()
        source_rows = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        blocks_in = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (source_slots, bi), "float32", align=4)
        index = T.match_buffer(index_h, (source_slots_index,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (source_rows,), "int32", align=4)
        w = T.match_buffer(w_h, (blocks_out, taps, blocks_in, bi, bo), "float32", align=4)
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
            end = T.alloc_buffer((blocks_in,), "int32")
            pair = T.alloc_buffer((blocks_in * size,), "int64")
            for chunk in T.serial((length + (size - 1)) // size):
                begin: T.let = first + chunk * size
                members: T.let = T.min(first + length - begin, size)
                for i in T.serial(members):
                    for v in T.vectorized(bo):
                        y[T.cast(slot[begin + i], "int64"), v] = bias[n, v]
                for tap in T.serial(taps):
                    sort_pairs(
                        x,
                        index,
                        rowptr,
                        slot,
                        sample,
                        pixel,
                        table,
                        area,
                        tap,
                        begin,
                        members,
                        end,
                        pair,
                        size,
                    )
                    for c in T.serial(blocks_in):
                        for part in T.serial(bi // rows):
                            kept = T.alloc_buffer((rows, bo), "float32")
                            for s in T.unroll(rows):
                                for v in T.vectorized(bo):
                                    kept[s, v] = w[n, tap, c, part * rows + s, v]
                                # Beyond the last row of a block lies the block that comes next.
                                T.evaluate(
                                    fetch(T.address_of(w[n, tap, c, (part + 1) * rows + s, 0]))
                                )
                            for i in T.serial(T.cast(end[c], "int64") - c * size):
                                source: T.let = pair[c * size + i] & T.int64(LOW_HALF)
                                out: T.let = pair[c * size + i] >> T.int64(32)
                                acc = T.alloc_buffer((2, bo), "float32")
                                for v in T.vectorized(bo):
                                    acc[0, v] = y[out, v]
                                for v in T.vectorized(bo):
                                    acc[1, v] = T.float32(0)
                                for s in T.unroll(rows):
                                    for v in T.vectorized(bo):
                                        acc[s % 2, v] = (
                                            acc[s % 2, v] + x[source, part * rows + s] * kept[s, v]
                                        )
                                for v in T.vectorized(bo):
                                    y[out, v] = acc[0, v] + acc[1, v]

    return kernel


def packed_weight_gradient(bi: int, bo: int, held: int) -> Any:
    """``dw[n, tap, c] += outer(x[q, c], dy[p, n])`` over the positions that chose ``n`` and whose
    neighbour chose ``c``.

    A task owns one output block and one tap; ``held`` rows of a block of the gradient are
    accumulated in registers at a time.
    """
    name = f"packed_weight_gradient_{bi}_{bo}"
    rows = min(held, bi)

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
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
        source_slots_index = T.int64()
        source_rows = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        blocks_in = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (source_slots, bi), "float32", align=4)
        index = T.match_buffer(index_h, (source_slots_index,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (source_rows,), "int32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (blocks_out, taps, blocks_in, bi, bo), "float32", align=4)
        for task in T.parallel(blocks_out * taps):
            n: T.let = task // taps
            tap: T.let = task % taps
            end = T.alloc_buffer((blocks_in,), "int32")
            pair = T.alloc_buffer((blocks_in * size,), "int64")
            for c in T.serial(blocks_in):
                for s in T.serial(bi):
                    for v in T.vectorized(bo):
                        dw[n, tap, c, s, v] = T.float32(0)
            for tile in T.serial((starts - 1) // blocks_out):
                first: T.let = T.cast(start[tile * blocks_out + n], "int64")
                last: T.let = T.cast(start[tile * blocks_out + n + 1], "int64")
                for chunk in T.serial((last - first + (size - 1)) // size):
                    begin: T.let = first + chunk * size
                    sort_pairs(
                        x,
                        index,
                        rowptr,
                        slot,
                        sample,
                        pixel,
                        table,
                        area,
                        tap,
                        begin,
                        T.min(last - begin, size),
                        end,
                        pair,
                        size,
                    )
                    for c in T.serial(blocks_in):
                        for part in T.serial(bi // rows):
                            acc = T.alloc_buffer((rows, bo), "float32")
                            for s in T.unroll(rows):
                                for v in T.vectorized(bo):
                                    acc[s, v] = dw[n, tap, c, part * rows + s, v]
                            for i in T.serial(T.cast(end[c], "int64") - c * size):
                                source: T.let = pair[c * size + i] & T.int64(LOW_HALF)
                                out: T.let = pair[c * size + i] >> T.int64(32)
                                for s in T.unroll(rows):
                                    for v in T.vectorized(bo):
                                        acc[s, v] = (
                                            acc[s, v] + x[source, part * rows + s] * dy[out, v]
                                        )
                            for s in T.unroll(rows):
                                for v in T.vectorized(bo):
                                    dw[n, tap, c, part * rows + s, v] = acc[s, v]

    return kernel
