"""Convolution of a dense input into selected output blocks (the first sparse layer after a dense
tensor).

The input comes as ``x[positions + 1, channels]``, channels last and padded to whole vectors; its
last row is zero and stands for every pixel outside the image, so that inner loops need no border
test.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.prefetch import fetch
from dsgc.codegen.tiles import DENSE_BLOCK

# Target positions whose input rows stay in the second-level cache during a weight gradient.
CHUNK = 96
LOW_HALF = 0xFFFFFFFF  # a pair is one int64: the output slot above, the input row below


def dense_convolution(bo: int, members: int, in_place: bool = False) -> Any:
    """``y[slot] = bias + sum over taps and all channels``; ``members`` positions share every weight
    vector they load.

    ``in_place`` takes weights whose inputs lie side by side, as in channels-last ones: a task turns
    those of its output block first, and then finds them in the second-level cache.
    """
    name = f"dense_convolution_{bo}{'_in_place' if in_place else ''}"
    lanes = DENSE_BLOCK

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
        s0 = T.int64()
        s1 = T.int64()
        s3 = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, channels), "float32", align=4)
        w = T.match_buffer(
            w_h,
            (blocks_out, taps, channels, T.int64(bo)),
            "float32",
            strides=[s0, s1, T.int64(1), s3] if in_place else None,
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
            last: T.let = T.cast(start[task + 1], "int64")
            own = T.alloc_buffer((taps, channels, bo) if in_place else (1, 1, bo), "float32")
            if in_place:
                for i in T.serial(T.if_then_else(first < last, taps * (channels // lanes), 0)):
                    tap: T.let = i // (channels // lanes)
                    k0: T.let = i % (channels // lanes) * lanes
                    turned = T.alloc_buffer((bo, lanes), "float32")
                    for v in T.unroll(bo):
                        for s in T.vectorized(lanes):
                            turned[v, s] = w[n, tap, k0 + s, v]
                        T.evaluate(fetch(T.address_of(w[n, tap, k0 + lanes, v])))
                    for s in T.unroll(lanes):
                        for v in T.vectorized(bo):
                            own[tap, k0 + s, v] = turned[v, s]
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
                                if in_place:
                                    acc[u, v] = acc[u, v] + x[row[u], k] * own[tap, k, v]
                                else:
                                    acc[u, v] = acc[u, v] + x[row[u], k] * w[n, tap, k, v]
                for u in T.unroll(members):
                    out: T.let = T.cast(slot[T.min(first + group * members + u, last - 1)], "int64")
                    for v in T.vectorized(bo):
                        y[out, v] = acc[u, v]

    return kernel


def dense_weight_gradient(bo: int, held: int) -> Any:
    """``dw[n, s, tap, c] += dy[p, n, s] * x[q, c]`` for every block ``c`` of 16 channels,
    in the order of channels-last weights.

    Partial sum ``i`` is over its share of the tiles of positions, at least one, so that a tile of
    ``x`` is read from memory once for all output blocks; ``splits`` tasks share the output blocks
    of one partial sum. ``held`` vectors of channels are accumulated in registers at a time, where
    registers allow those of two blocks, which share every value of ``dy`` that is loaded.
    """
    name = f"dense_weight_gradient_{bo}"
    lanes = DENSE_BLOCK
    side, depth = _register_tile(bo, held)

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
        blocks_in = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        s2 = T.int64()
        s3 = T.int64()
        s4 = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, blocks_in, lanes), "float32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        partials = T.int64()
        dw = T.match_buffer(
            dw_h,
            (partials, blocks_out, T.int64(bo), taps, blocks_in, T.int64(lanes)),
            "float32",
            strides=[s0, s1, s2, s3, s4, T.int64(1)],
            align=4,
            offset_factor=1,
        )
        for task in T.parallel(partials * splits):
            part: T.let = task // splits
            n0: T.let = (task % splits) * blocks_out // splits
            n1: T.let = (task % splits + 1) * blocks_out // splits
            tiles: T.let = (starts - 1) // blocks_out
            tile0: T.let = part * tiles // partials
            pair = T.alloc_buffer((CHUNK,), "int64")
            for tile in T.serial((part + 1) * tiles // partials - tile0):
                for block in T.serial(n1 - n0):
                    n: T.let = n0 + block
                    if tile == 0:
                        for i in T.serial(taps * blocks_in):
                            for s in T.serial(bo):
                                for v in T.vectorized(lanes):
                                    dw[part, n, s, i // blocks_in, i % blocks_in, v] = T.float32(0)
                    first: T.let = T.cast(start[(tile0 + tile) * blocks_out + n], "int64")
                    last: T.let = T.cast(start[(tile0 + tile) * blocks_out + n + 1], "int64")
                    for chunk in T.serial((last - first + (CHUNK - 1)) // CHUNK):
                        begin: T.let = first + chunk * CHUNK
                        members: T.let = T.min(last - begin, T.int64(CHUNK))
                        for tap in T.serial(taps):
                            found = T.alloc_scalar("int64")
                            found = T.int64(0)
                            for i in T.serial(members):
                                near: T.let = table[tap, T.cast(pixel[begin + i], "int64")]
                                row: T.let = T.cast(sample[begin + i], "int64") * area
                                if near >= 0:
                                    pair[found] = (row + T.cast(near, "int64")) | (
                                        T.cast(slot[begin + i], "int64") << T.int64(32)
                                    )
                                    T.evaluate(
                                        fetch(T.address_of(x[row + T.cast(near, "int64"), 0, 0]))
                                    )
                                    found = found + 1
                            for c in T.serial((blocks_in + (side - 1)) // side):
                                # The last block may come twice; both times it gets the same sums.
                                c0: T.let = c * side
                                c1: T.let = T.min(c0 + (side - 1), blocks_in - 1)
                                for piece in T.serial(bo // depth):
                                    low = T.alloc_buffer((depth, lanes), "float32")
                                    high = T.alloc_buffer((depth, lanes), "float32")
                                    for s in T.unroll(depth):
                                        for v in T.vectorized(lanes):
                                            low[s, v] = dw[part, n, piece * depth + s, tap, c0, v]
                                        if side == 2:
                                            for v in T.vectorized(lanes):
                                                high[s, v] = dw[
                                                    part, n, piece * depth + s, tap, c1, v
                                                ]
                                    for i in T.serial(found):
                                        q: T.let = pair[i] & T.int64(LOW_HALF)
                                        at: T.let = pair[i] >> T.int64(32)
                                        T.evaluate(fetch(T.address_of(x[q, c1 + 1, 0])))
                                        if side == 2:
                                            T.evaluate(fetch(T.address_of(x[q, c1 + 2, 0])))
                                        for s in T.unroll(depth):
                                            d: T.let = dy[at, piece * depth + s]
                                            for v in T.vectorized(lanes):
                                                low[s, v] = low[s, v] + d * x[q, c0, v]
                                            if side == 2:
                                                for v in T.vectorized(lanes):
                                                    high[s, v] = high[s, v] + d * x[q, c1, v]
                                    for s in T.unroll(depth):
                                        for v in T.vectorized(lanes):
                                            dw[part, n, piece * depth + s, tap, c0, v] = low[s, v]
                                        if side == 2:
                                            for v in T.vectorized(lanes):
                                                dw[part, n, piece * depth + s, tap, c1, v] = high[
                                                    s, v
                                                ]

    return kernel


def dense_data_gradient(bo: int, held: int) -> Any:
    """``dx[q] += dy[p, n] @ w[n, tap]`` for a dense input: every channel of ``q`` is a target.

    A task owns ``span`` source pixels, those of whole samples, and ``group`` blocks of 16 input
    channels, so tasks never meet in ``dx``. The lists must be cut at the same samples. For one
    output block, tap and input block the weights stay in registers (``held`` rows of them) while
    the positions that chose the output block stream by. Where registers allow, two input blocks
    share every value of ``dy`` that is loaded.
    """
    name = f"dense_data_gradient_{bo}"
    lanes = DENSE_BLOCK
    side, depth = _register_tile(bo, held)

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        w_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        dx_h: T.handle,
        table_h: T.handle,
        area: T.int64,
        span: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        groups = T.int64()
        group = T.int64()
        padded = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        s2 = T.int64()
        s3 = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        w = T.match_buffer(
            w_h,
            (padded, taps, blocks_out, T.int64(bo), T.int64(lanes)),
            "float32",
            strides=[s0, s1, s2, s3, T.int64(1)],
            align=4,
            offset_factor=1,
        )
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        dx = T.match_buffer(dx_h, (rows, groups, group, lanes), "float32", align=4)
        for task in T.parallel((starts - 1) // blocks_out * groups):
            # Not the groups of a tile side by side: processors fetch on their own what lies ahead,
            # and two of them would take the same rows from each other.
            tile: T.let = task % ((starts - 1) // blocks_out)
            part: T.let = task // ((starts - 1) // blocks_out)
            for i in T.serial(T.min(span, rows - tile * span)):
                for u in T.serial(group):
                    for v in T.vectorized(lanes):
                        dx[tile * span + i, part, u, v] = T.float32(0)
            pair = T.alloc_buffer((CHUNK,), "int64")
            for n in T.serial(blocks_out):
                first: T.let = T.cast(start[tile * blocks_out + n], "int64")
                last: T.let = T.cast(start[tile * blocks_out + n + 1], "int64")
                for chunk in T.serial((last - first + (CHUNK - 1)) // CHUNK):
                    begin: T.let = first + chunk * CHUNK
                    members: T.let = T.min(last - begin, T.int64(CHUNK))
                    for tap in T.serial(taps):
                        found = T.alloc_scalar("int64")
                        found = T.int64(0)
                        for i in T.serial(members):
                            near: T.let = table[tap, T.cast(pixel[begin + i], "int64")]
                            row: T.let = T.cast(sample[begin + i], "int64") * area
                            if near >= 0:
                                pair[found] = (row + T.cast(near, "int64")) | (
                                    T.cast(slot[begin + i], "int64") << T.int64(32)
                                )
                                T.evaluate(
                                    fetch(
                                        T.address_of(dx[row + T.cast(near, "int64"), part, 0, 0]),
                                        write=True,
                                    )
                                )
                                found = found + 1
                        for u in T.serial((group + (side - 1)) // side):
                            # The last block may come twice; both times it gets the same gradient.
                            u0: T.let = u * side
                            u1: T.let = T.min(u0 + (side - 1), group - 1)
                            ahead: T.let = T.min(u1 + 1, group - 1)
                            for half in T.serial(bo // depth):
                                kept0 = T.alloc_buffer((depth, lanes), "float32")
                                kept1 = T.alloc_buffer((depth, lanes), "float32")
                                for s in T.unroll(depth):
                                    for v in T.vectorized(lanes):
                                        kept0[s, v] = w[
                                            part * group + u0, tap, n, half * depth + s, v
                                        ]
                                    if side == 2:
                                        for v in T.vectorized(lanes):
                                            kept1[s, v] = w[
                                                part * group + u1, tap, n, half * depth + s, v
                                            ]
                                for i in T.serial(found):
                                    q: T.let = pair[i] & T.int64(LOW_HALF)
                                    at: T.let = pair[i] >> T.int64(32)
                                    # Never beyond: that may be another task's, and is to be owned.
                                    T.evaluate(
                                        fetch(T.address_of(dx[q, part, ahead, 0]), write=True)
                                    )
                                    acc = T.alloc_buffer((2, lanes), "float32")
                                    for v in T.vectorized(lanes):
                                        acc[0, v] = dx[q, part, u0, v]
                                    for v in T.vectorized(lanes):
                                        acc[1, v] = (
                                            dx[q, part, u1, v] if side == 2 else T.float32(0)
                                        )
                                    for s in T.unroll(depth):
                                        d: T.let = dy[at, half * depth + s]
                                        if side == 2:
                                            for v in T.vectorized(lanes):
                                                acc[0, v] = acc[0, v] + d * kept0[s, v]
                                            for v in T.vectorized(lanes):
                                                acc[1, v] = acc[1, v] + d * kept1[s, v]
                                        else:
                                            for v in T.vectorized(lanes):
                                                acc[s % 2, v] = acc[s % 2, v] + d * kept0[s, v]
                                    if side == 2:
                                        for v in T.vectorized(lanes):
                                            dx[q, part, u0, v] = acc[0, v]
                                        for v in T.vectorized(lanes):
                                            dx[q, part, u1, v] = acc[1, v]
                                    else:
                                        for v in T.vectorized(lanes):
                                            dx[q, part, u0, v] = acc[0, v] + acc[1, v]

    return kernel


def _register_tile(bo: int, held: int) -> tuple[int, int]:
    """How many input blocks the gradients take side by side, and how many vectors of each: with few
    registers two blocks would leave too few of either.
    """
    side = 2 if held >= DENSE_BLOCK else 1
    return side, min(held // side, bo)
