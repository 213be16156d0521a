"""Convolution of a dense input into selected output blocks (the first sparse layer after a dense
tensor).

The input comes as ``x[positions + 1, channels]``, channels last and padded to whole vectors; its
last row is zero and stands for every pixel outside the image, so that inner loops need no border
test.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import DENSE_BLOCK, GROUP

# Target positions whose input rows stay in the second-level cache during a weight gradient.
CHUNK = 120


def dense_convolution(bo: int, members: int) -> Any:
    """``y[slot] = bias + sum over taps and all channels``; ``members`` positions share every weight
    vector they load.
    """
    name = f"dense_convolution_{bo}"

    @T.prim_func(s_tir=True)
    def kernel(
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
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        channels = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, channels), "float32", align=4)
        w = T.match_buffer(w_h, (blocks_out, taps, channels, bo), "float32", align=4)
        bias = T.match_buffer(bias_h, (blocks_out, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        y = T.match_buffer(y_h, (slots, bo), "float32", align=4)
        for task in T.parallel(starts - 1):
            n: T.let = task % blocks_out
            first: T.let = T.cast(start[task], "int64")
            last: T.let = T.cast(start[task + 1], "int64")
            for group in T.serial((last - first + (members - 1)) // members):
                row = T.alloc_buffer((members,), "int64")
                acc = T.alloc_buffer((members, bo), "float32")
                for u in T.unroll(members):
                    for v in T.vectorized(bo):
                        acc[u, v] = bias[n, v]
                for tap in T.serial(taps):
                    for u in T.unroll(members):
                        at: T.let = T.min(first + group * members + u, last - 1)
                        near: T.let = table[tap, T.cast(pixel[at], "int64")]
                        row[u] = T.Select(
                            near >= 0,
                            T.cast(sample[at], "int64") * area + T.cast(near, "int64"),
                            rows - 1,
                        )
                    for k in T.serial(channels):
                        for u in T.unroll(members):
                            for v in T.vectorized(bo):
                                acc[u, v] = acc[u, v] + x[row[u], k] * w[n, tap, k, v]
                for u in T.unroll(members):
                    out: T.let = T.cast(slot[T.min(first + group * members + u, last - 1)], "int64")
                    for v in T.vectorized(bo):
                        y[out, v] = acc[u, v]

    return kernel


def dense_weight_gradient(bo: int) -> Any:
    """``dw[n, tap, k] += x[q, k] * dy[p, n]`` for every channel ``k``.

    A task owns an output block and ``1 / splits`` of the taps; it accumulates a few channels at a
    time in registers over a chunk of positions.
    """
    name = f"dense_weight_gradient_{bo}"
    depth = 128 // bo

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        dy_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        dw_h: T.handle,
        splits: T.int64,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        channels = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, channels), "float32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (blocks_out, taps, channels, bo), "float32", align=4)
        for task in T.parallel(blocks_out * splits):
            n: T.let = task // splits
            tap0: T.let = (task % splits) * taps // splits
            tap1: T.let = (task % splits + 1) * taps // splits
            for t in T.serial(tap1 - tap0):
                for k in T.serial(channels):
                    for v in T.vectorized(bo):
                        dw[n, tap0 + t, k, v] = T.float32(0)
            row = T.alloc_buffer((CHUNK,), "int64")
            for tile in T.serial((starts - 1) // blocks_out):
                first: T.let = T.cast(start[tile * blocks_out + n], "int64")
                last: T.let = T.cast(start[tile * blocks_out + n + 1], "int64")
                for chunk in T.serial((last - first + (CHUNK - 1)) // CHUNK):
                    begin: T.let = first + chunk * CHUNK
                    members: T.let = T.min(last - begin, T.int64(CHUNK))
                    for t in T.serial(tap1 - tap0):
                        for i in T.serial(members):
                            near: T.let = table[tap0 + t, T.cast(pixel[begin + i], "int64")]
                            row[i] = T.Select(
                                near >= 0,
                                T.cast(sample[begin + i], "int64") * area + T.cast(near, "int64"),
                                rows - 1,
                            )
                        for k in T.serial(channels // depth):
                            acc = T.alloc_buffer((depth, bo), "float32")
                            for u in T.unroll(depth):
                                for v in T.vectorized(bo):
                                    acc[u, v] = dw[n, tap0 + t, k * depth + u, v]
                            for i in T.serial(members):
                                q: T.let = row[i]
                                at: T.let = T.cast(slot[begin + i], "int64")
                                for u in T.unroll(depth):
                                    for v in T.vectorized(bo):
                                        acc[u, v] = acc[u, v] + x[q, k * depth + u] * dy[at, v]
                            for u in T.unroll(depth):
                                for v in T.vectorized(bo):
                                    dw[n, tap0 + t, k * depth + u, v] = acc[u, v]

    return kernel


def dense_data_gradient(bo: int) -> Any:
    """``dx[q] += dy[p, n] @ w[n, tap]`` for a dense input: every channel of ``q`` is a target.

    A task owns one sample and ``group`` blocks of 16 input channels, so tasks never meet in ``dx``.
    The lists must be cut at samples (``tile`` = target pixels of a sample). For one output block
    and tap the weights (``group`` KiB) stay in the first-level cache, and a row of ``dx`` is held
    in registers while the ``bo`` lanes of one slot are added.
    """
    name = f"dense_data_gradient_{bo}"
    group, lanes = GROUP, DENSE_BLOCK

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        w_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        pixel_h: T.handle,
        dx_h: T.handle,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        groups = T.int64()
        padded = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        w = T.match_buffer(w_h, (padded, taps, blocks_out, bo, lanes), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        dx = T.match_buffer(dx_h, (rows, groups, group, lanes), "float32", align=4)
        for task in T.parallel((starts - 1) // blocks_out * groups):
            image: T.let = task // groups
            part: T.let = task % groups
            for i in T.serial(area):
                for u in T.unroll(group):
                    for v in T.vectorized(lanes):
                        dx[image * area + i, part, u, v] = T.float32(0)
            for n in T.serial(blocks_out):
                first: T.let = T.cast(start[image * blocks_out + n], "int64")
                last: T.let = T.cast(start[image * blocks_out + n + 1], "int64")
                for tap in T.serial(taps):
                    for i in T.serial(last - first):
                        near: T.let = table[tap, T.cast(pixel[first + i], "int64")]
                        if near >= 0:
                            q: T.let = image * area + T.cast(near, "int64")
                            at: T.let = T.cast(slot[first + i], "int64")
                            acc = T.alloc_buffer((group, lanes), "float32")
                            for u in T.unroll(group):
                                for v in T.vectorized(lanes):
                                    acc[u, v] = dx[q, part, u, v]
                            for s in T.unroll(bo):
                                for u in T.unroll(group):
                                    for v in T.vectorized(lanes):
                                        acc[u, v] = (
                                            acc[u, v]
                                            + dy[at, s] * w[part * group + u, tap, n, s, v]
                                        )
                            for u in T.unroll(group):
                                for v in T.vectorized(lanes):
                                    dx[q, part, u, v] = acc[u, v]

    return kernel
