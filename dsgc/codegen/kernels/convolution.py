"""Convolution of packed activations: only selected input blocks meet only selected output blocks.

One task holds an output block: for each kernel tap its weights (``blocks x bi x bo`` floats, 8 to
32 KiB) stay in the first-level cache while the positions that chose the block stream by. Per
position and tap, every input block that the neighbour has selected adds ``bi`` multiply-adds of
``bo`` lanes.

Which source pixel a tap touches is looked up: ``table[tap, pixel]`` is the source pixel of the
same sample, or -1; a sample has ``area`` source pixels. One kernel so serves every geometry, and
backward-data is the same kernel with the table of the transposed convolution.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

CHUNK = 256  # target slots that stay in the first-level cache beside a tap's weights: 16 KiB
ACCUMULATORS = 4  # independent sums, enough to hide the latency of a multiply-add


def packed_convolution(bi: int, bo: int) -> Any:
    """``y[slot] = bias + sum over taps and selected input blocks``, for target blocks of ``bo``."""
    name = f"packed_convolution_{bi}_{bo}"
    sums = min(ACCUMULATORS, bi)

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
            for chunk in T.serial((length + (CHUNK - 1)) // CHUNK):
                begin: T.let = first + chunk * CHUNK
                members: T.let = T.min(first + length - begin, T.int64(CHUNK))
                for i in T.serial(members):
                    for v in T.vectorized(bo):
                        y[T.cast(slot[begin + i], "int64"), v] = bias[n, v]
                for tap in T.serial(taps):
                    for i in T.serial(members):
                        near: T.let = table[tap, T.cast(pixel[begin + i], "int64")]
                        if near >= 0:
                            q: T.let = T.cast(sample[begin + i], "int64") * area + T.cast(
                                near, "int64"
                            )
                            low: T.let = T.cast(rowptr[q], "int64")
                            selected: T.let = T.cast(rowptr[q + 1], "int64") - low
                            acc = T.alloc_buffer((sums, bo), "float32")
                            for u in T.unroll(sums):
                                for v in T.vectorized(bo):
                                    acc[u, v] = T.float32(0)
                            for j in T.serial(selected):
                                b: T.let = T.cast(index[low + j], "int64")
                                for s in T.unroll(bi):
                                    for v in T.vectorized(bo):
                                        acc[s % sums, v] = (
                                            acc[s % sums, v] + x[low + j, s] * w[n, tap, b, s, v]
                                        )
                            out: T.let = T.cast(slot[begin + i], "int64")
                            for u in T.unroll(sums):
                                for v in T.vectorized(bo):
                                    y[out, v] = y[out, v] + acc[u, v]

    return kernel


def packed_weight_gradient(bi: int, bo: int) -> Any:
    """``dw[n, tap, c] += outer(x[q, c], dy[p, n])`` over the positions that chose ``n`` and whose
    neighbour chose ``c``.

    A task owns one output block and one tap, whose gradient stays in the first-level cache.
    """
    name = f"packed_weight_gradient_{bi}_{bo}"

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
            for c in T.serial(blocks_in):
                for s in T.serial(bi):
                    for v in T.vectorized(bo):
                        dw[n, tap, c, s, v] = T.float32(0)
            for tile in T.serial((starts - 1) // blocks_out):
                first: T.let = T.cast(start[tile * blocks_out + n], "int64")
                last: T.let = T.cast(start[tile * blocks_out + n + 1], "int64")
                for i in T.serial(last - first):
                    near: T.let = table[tap, T.cast(pixel[first + i], "int64")]
                    if near >= 0:
                        q: T.let = T.cast(sample[first + i], "int64") * area + T.cast(near, "int64")
                        low: T.let = T.cast(rowptr[q], "int64")
                        at: T.let = T.cast(slot[first + i], "int64")
                        d = T.alloc_buffer((bo,), "float32")
                        for v in T.vectorized(bo):
                            d[v] = dy[at, v]
                        for j in T.serial(T.cast(rowptr[q + 1], "int64") - low):
                            b: T.let = T.cast(index[low + j], "int64")
                            for s in T.unroll(bi):
                                for v in T.vectorized(bo):
                                    dw[n, tap, b, s, v] = dw[n, tap, b, s, v] + x[low + j, s] * d[v]

    return kernel
