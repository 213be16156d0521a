"""Neuron-wise selection (block 1, the published DSG): one dot product per selected neuron.

Source and weights are dense rows of whole vectors; the last row of the source is zero and stands
for pixels outside the image.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import NEURON_LANES as LANES

MEMBERS = 4  # selected neurons computed together: they share the weight row
CHUNK = 128
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
        position_h: T.handle,
        y_h: T.handle,
        height: T.int32,
        width: T.int32,
        target_height: T.int32,
        target_width: T.int32,
        kernel_width: T.int32,
        mul_h: T.int32,
        mul_w: T.int32,
        off_h: T.int32,
        off_w: T.int32,
        step_h: T.int32,
        step_w: T.int32,
        div_h: T.int32,
        div_w: T.int32,
    ):
        T.func_attr({"global_symbol": "neuron_convolution", "tirx.noalias": True})
        rows = T.int64()
        vectors = T.int64()
        neurons = T.int64()
        taps = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (rows, vectors, LANES), "float32", align=4)
        w = T.match_buffer(w_h, (neurons, taps, vectors, LANES), "float32", align=4)
        bias = T.match_buffer(bias_h, (neurons,), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        position = T.match_buffer(position_h, (slots,), "int32", align=4)
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
                    shift_h: T.let = T.truncdiv(T.cast(tap, "int32"), kernel_width) * step_h + off_h
                    shift_w: T.let = T.truncmod(T.cast(tap, "int32"), kernel_width) * step_w + off_w
                    for u in T.unroll(MEMBERS):
                        p: T.let = position[T.min(first + group * MEMBERS + u, last - 1)]
                        line: T.let = T.truncdiv(p, target_width)
                        at_h: T.let = T.truncmod(line, target_height) * mul_h + shift_h
                        at_w: T.let = T.truncmod(p, target_width) * mul_w + shift_w
                        h: T.let = T.truncdiv(at_h, div_h)
                        c: T.let = T.truncdiv(at_w, div_w)
                        row[u] = T.Select(
                            (at_h >= 0)
                            & (h < height)
                            & (at_w >= 0)
                            & (c < width)
                            & (h * div_h == at_h)
                            & (c * div_w == at_w),
                            T.cast(
                                (T.truncdiv(line, target_height) * height + h) * width + c, "int64"
                            ),
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
        position_h: T.handle,
        dw_h: T.handle,
        height: T.int32,
        width: T.int32,
        target_height: T.int32,
        target_width: T.int32,
        kernel_width: T.int32,
        mul_h: T.int32,
        mul_w: T.int32,
        off_h: T.int32,
        off_w: T.int32,
        step_h: T.int32,
        step_w: T.int32,
    ):
        T.func_attr({"global_symbol": "neuron_weight_gradient", "tirx.noalias": True})
        rows = T.int64()
        vectors = T.int64()
        neurons = T.int64()
        taps = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (rows, vectors, LANES), "float32", align=4)
        dy = T.match_buffer(dy_h, (slots,), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        position = T.match_buffer(position_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (neurons, taps, vectors, LANES), "float32", align=4)
        for n in T.parallel(neurons):
            row = T.alloc_buffer((CHUNK,), "int32")
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
                        tap32: T.let = T.cast(tap, "int32")
                        shift_h: T.let = T.truncdiv(tap32, kernel_width) * step_h + off_h
                        shift_w: T.let = T.truncmod(tap32, kernel_width) * step_w + off_w
                        for i in T.serial(members):
                            p: T.let = position[begin + i]
                            line: T.let = T.truncdiv(p, target_width)
                            h: T.let = T.truncmod(line, target_height) * mul_h + shift_h
                            c: T.let = T.truncmod(p, target_width) * mul_w + shift_w
                            row[i] = T.Select(
                                (h >= 0) & (h < height) & (c >= 0) & (c < width),
                                (T.truncdiv(line, target_height) * height + h) * width + c,
                                T.cast(rows - 1, "int32"),
                            )
                        for k in T.serial((vectors + (DEPTH - 1)) // DEPTH):
                            acc = T.alloc_buffer((DEPTH, LANES), "float32")
                            for u in T.unroll(DEPTH):
                                for v in T.vectorized(LANES):
                                    acc[u, v] = T.float32(0)
                            for i in T.serial(members):
                                g: T.let = dy[T.cast(slot[begin + i], "int64")]
                                q: T.let = T.cast(row[i], "int64")
                                for u in T.unroll(DEPTH):
                                    at: T.let = T.min(k * DEPTH + u, vectors - 1)
                                    for v in T.vectorized(LANES):
                                        acc[u, v] = acc[u, v] + g * x[q, at, v]
                            for u in T.unroll(DEPTH):
                                if k * DEPTH + u < vectors:
                                    for v in T.vectorized(LANES):
                                        dw[n, tap, k * DEPTH + u, v] = (
                                            dw[n, tap, k * DEPTH + u, v] + acc[u, v]
                                        )

    return neuron_weight_gradient
