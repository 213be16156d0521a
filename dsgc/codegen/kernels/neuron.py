"""Neuron-wise selection (block 1, the published DSG): one dot product per selected neuron.

Source and weights are dense rows of whole vectors; the last row of the source is zero and stands
for pixels outside the image.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import NEURON_LANES as LANES

MEMBERS = 4  # selected neurons computed together: they share the weight row
CHUNK = 120
DEPTH = 4  # vectors of a weight row accumulated together by the gradient


def neuron_convolution() -> Any:
    """``y[slot] = bias[n] + <x window, w[n]>``; geometry as in
    :mod:`dsgc.codegen.kernels.convolution`.
    """

    @T.prim_func(s_tir=True)
    def neuron_convolution(
        x_h: T.handle,
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
        T.func_attr({"global_symbol": "neuron_convolution", "tirx.noalias": True})
        rows = T.int64()
        vectors = T.int64()
        neurons = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, vectors, LANES), "float32", align=4)
        w = T.match_buffer(w_h, (neurons, taps, vectors, LANES), "float32", align=4)
        bias = T.match_buffer(bias_h, (neurons,), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        y = T.match_buffer(y_h, (slots,), "float32", align=4)
        for task in T.parallel(starts - 1):
            n: T.let = task % neurons
            first: T.let = T.cast(start[task], "int64")
            last: T.let = T.cast(start[task + 1], "int64")
            for group in T.serial((last - first + (MEMBERS - 1)) // MEMBERS):
                row = T.alloc_buffer((MEMBERS,), "int64")
                acc = T.alloc_buffer((MEMBERS, LANES), "float32")
                for u in T.unroll(MEMBERS):
                    for v in T.vectorized(LANES):
                        acc[u, v] = T.float32(0)
                for tap in T.serial(taps):
                    for u in T.unroll(MEMBERS):
                        at: T.let = T.min(first + group * MEMBERS + u, last - 1)
                        near: T.let = table[tap, T.cast(pixel[at], "int64")]
                        row[u] = T.Select(
                            near >= 0,
                            T.cast(sample[at], "int64") * area + T.cast(near, "int64"),
                            rows - 1,
                        )
                    for k in T.serial(vectors):
                        for u in T.unroll(MEMBERS):
                            for v in T.vectorized(LANES):
                                acc[u, v] = acc[u, v] + x[row[u], k, v] * w[n, tap, k, v]
                for u in T.unroll(MEMBERS):
                    for v in T.vectorized(8):
                        acc[u, v] = acc[u, v] + acc[u, v + 8]
                    for v in T.vectorized(4):
                        acc[u, v] = acc[u, v] + acc[u, v + 4]
                    out: T.let = T.cast(slot[T.min(first + group * MEMBERS + u, last - 1)], "int64")
                    y[out] = bias[n] + ((acc[u, 0] + acc[u, 1]) + (acc[u, 2] + acc[u, 3]))

    return neuron_convolution


def neuron_weight_gradient() -> Any:
    """``dw[n, tap] += dy[p, n] * x[q]`` over the positions that selected neuron ``n``."""

    @T.prim_func(s_tir=True)
    def neuron_weight_gradient(
        x_h: T.handle,
        dy_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        dw_h: T.handle,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": "neuron_weight_gradient", "tirx.noalias": True})
        rows = T.int64()
        vectors = T.int64()
        neurons = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, vectors, LANES), "float32", align=4)
        dy = T.match_buffer(dy_h, (slots,), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (neurons, taps, vectors, LANES), "float32", align=4)
        for n in T.parallel(neurons):
            row = T.alloc_buffer((CHUNK,), "int64")
            for tap in T.serial(taps):
                for k in T.serial(vectors):
                    for v in T.vectorized(LANES):
                        dw[n, tap, k, v] = T.float32(0)
            for tile in T.serial((starts - 1) // neurons):
                first: T.let = T.cast(start[tile * neurons + n], "int64")
                last: T.let = T.cast(start[tile * neurons + n + 1], "int64")
                for chunk in T.serial((last - first + (CHUNK - 1)) // CHUNK):
                    begin: T.let = first + chunk * CHUNK
                    members: T.let = T.min(last - begin, T.int64(CHUNK))
                    for tap in T.serial(taps):
                        for i in T.serial(members):
                            near: T.let = table[tap, T.cast(pixel[begin + i], "int64")]
                            row[i] = T.Select(
                                near >= 0,
                                T.cast(sample[begin + i], "int64") * area + T.cast(near, "int64"),
                                rows - 1,
                            )
                        for k in T.serial((vectors + (DEPTH - 1)) // DEPTH):
                            acc = T.alloc_buffer((DEPTH, LANES), "float32")
                            for u in T.unroll(DEPTH):
                                for v in T.vectorized(LANES):
                                    acc[u, v] = T.float32(0)
                            for i in T.serial(members):
                                d: T.let = dy[T.cast(slot[begin + i], "int64")]
                                q: T.let = row[i]
                                for u in T.unroll(DEPTH):
                                    at: T.let = T.min(k * DEPTH + u, vectors - 1)
                                    for v in T.vectorized(LANES):
                                        acc[u, v] = acc[u, v] + d * x[q, at, v]
                            for u in T.unroll(DEPTH):
                                if k * DEPTH + u < vectors:
                                    for v in T.vectorized(LANES):
                                        dw[n, tap, k * DEPTH + u, v] = (
                                            dw[n, tap, k * DEPTH + u, v] + acc[u, v]
                                        )

    return neuron_weight_gradient
