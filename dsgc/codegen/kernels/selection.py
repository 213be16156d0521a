"""Dimension-reduction search and the choice of winners."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import PROJECTED_LANES as LANES


def project(b: int) -> Any:
    """``y[p] = x[p] @ R`` for packed rows: only selected blocks are read. ``R`` is ``[blocks, b,
    depth / 8, 8]``.
    """
    name = f"project_{b}"

    @T.prim_func(s_tir=True)
    def kernel(x_h: T.handle, index_h: T.handle, rowptr_h: T.handle, r_h: T.handle, y_h: T.handle):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        blocks = T.int64()
        depth = T.int64()
        places = T.int64()
        x = T.match_buffer(x_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        r = T.match_buffer(r_h, (blocks, b, depth, LANES), "float32", align=4)
        y = T.match_buffer(y_h, (places, depth, LANES), "float32", align=4)
        for p in T.parallel(rows - 1):
            first: T.let = T.cast(rowptr[p], "int64")
            for d in T.serial(depth):
                acc = T.alloc_buffer((2, LANES), "float32")
                for u in T.unroll(2):
                    for v in T.vectorized(LANES):
                        acc[u, v] = T.float32(0)
                for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                    c: T.let = T.cast(index[first + j], "int64")
                    for s in T.unroll(b):
                        for v in T.vectorized(LANES):
                            acc[s % 2, v] = acc[s % 2, v] + x[first + j, s] * r[c, s, d, v]
                for v in T.vectorized(LANES):
                    y[p, d, v] = acc[0, v] + acc[1, v]

    return kernel


def block_scores(b: int, members: int, columns: int) -> Any:
    """Low-dimensional convolution of projected rows, reduced to one score a block before anything
    is written.

    The score is the sum of ``relu(estimate)`` over the block (block 1: the estimate itself).
    ``members`` positions by ``columns`` channels are accumulated in registers. The last row of
    ``x`` is zero: pixels outside the image.
    """
    name = f"block_scores_{b}"
    half = members // 2
    per_tile = columns // b

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        w_h: T.handle,
        scores_h: T.handle,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        depth = T.int64()
        taps = T.int64()
        pixels = T.int64()
        channels = T.int64()
        positions = T.int64()
        blocks = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, depth), "float32", align=4)
        w = T.match_buffer(w_h, (taps, depth, channels), "float32", align=4)
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        for group in T.parallel((positions + (members - 1)) // members):
            row = T.alloc_buffer((members,), "int64")
            place = T.alloc_buffer((2, members), "int64")
            for u in T.unroll(members):
                place[0, u] = T.min(group * members + u, positions - 1) // pixels
                place[1, u] = T.min(group * members + u, positions - 1) % pixels
            for tile in T.serial(channels // columns):
                low = T.alloc_buffer((half, columns), "float32")
                high = T.alloc_buffer((half, columns), "float32")
                for u in T.unroll(half):
                    for v in T.vectorized(columns):
                        low[u, v] = T.float32(0)
                    for v in T.vectorized(columns):
                        high[u, v] = T.float32(0)
                for tap in T.serial(taps):
                    for u in T.unroll(members):
                        near: T.let = table[tap, place[1, u]]
                        row[u] = T.Select(
                            near >= 0, place[0, u] * area + T.cast(near, "int64"), rows - 1
                        )
                    for k in T.serial(depth):
                        for u in T.unroll(half):
                            for v in T.vectorized(columns):
                                low[u, v] = low[u, v] + x[row[u], k] * w[tap, k, tile * columns + v]
                            for v in T.vectorized(columns):
                                high[u, v] = (
                                    high[u, v] + x[row[half + u], k] * w[tap, k, tile * columns + v]
                                )
                for u in T.unroll(half):
                    for side in T.unroll(2):
                        z = T.alloc_buffer((columns,), "float32")
                        for v in T.vectorized(columns):
                            z[v] = T.Select(side == 0, low[u, v], high[u, v])
                        if b > 1:
                            for v in T.vectorized(columns):
                                z[v] = T.Select(z[v] < T.float32(0), T.float32(0), z[v])
                        p: T.let = group * members + side * half + u
                        if p < positions:
                            for n in T.serial(T.min(T.int64(per_tile), blocks - tile * per_tile)):
                                if b >= 32:
                                    for v in T.vectorized(16):
                                        z[n * b + v] = z[n * b + v] + z[n * b + 16 + v]
                                if b >= 16:
                                    for v in T.vectorized(8):
                                        z[n * b + v] = z[n * b + v] + z[n * b + 8 + v]
                                if b >= 8:
                                    for v in T.vectorized(4):
                                        z[n * b + v] = z[n * b + v] + z[n * b + 4 + v]
                                    scores[p, tile * per_tile + n] = (z[n * b] + z[n * b + 1]) + (
                                        z[n * b + 2] + z[n * b + 3]
                                    )
                                else:
                                    scores[p, tile * per_tile + n] = z[n]

    return kernel


def rank_winners() -> Any:
    """The ``winners`` largest scores of each row, by ascending index; ties go to the lower index,
    NaN counts as infinity.
    """

    @T.prim_func(s_tir=True)
    def rank_winners(scores_h: T.handle, index_h: T.handle):
        T.func_attr({"global_symbol": "rank_winners", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        winners = T.int64()
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        index = T.match_buffer(index_h, (positions, winners), "int32", align=4)
        for p in T.parallel(positions):
            place = T.alloc_scalar("int64")
            better = T.alloc_scalar("int32")
            place = T.int64(0)
            for n in T.serial(blocks):
                mine: T.let = T.Select(T.isnan(scores[p, n]), T.float32(float("inf")), scores[p, n])
                better = 0
                for m in T.serial(n):
                    better = better + T.cast(
                        (scores[p, m] >= mine) | T.isnan(scores[p, m]), "int32"
                    )
                for m in T.serial(blocks - n - 1):
                    other: T.let = scores[p, n + 1 + m]
                    better = better + T.cast(
                        (other > mine) | (T.isnan(other) & (mine < T.float32(float("inf")))),
                        "int32",
                    )
                if T.cast(better, "int64") < winners:
                    index[p, place] = T.cast(n, "int32")
                    place = place + 1

    return rank_winners
