"""Low-dimensional convolution of rounded rows, reduced to one score a block on the way."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.register_tile import add_products, begin_sums, locate, rows_at
from dsgc.codegen.tiles import VECTOR


def byte_scores(b: int, members: int, columns: int) -> Any:
    """Low-dimensional convolution of rounded rows, reduced to one score a block before anything is
    written: ``scores[p, block]`` = the sum of ``relu(estimate + offset)`` over the block (block 1:
    without relu).

    Rows are bytes around 128; ``first[channel]`` is what takes the 128 away again. A register tile
    is ``members`` positions by ``columns`` channels; each instruction adds four products a channel.
    """
    name = f"block_scores_{b}"
    vectors = columns // VECTOR

    @T.prim_func(s_tir=True)
    def kernel(
        q_h: T.handle,
        w_h: T.handle,
        first_h: T.handle,
        unit_h: T.handle,
        offset_h: T.handle,
        step_h: T.handle,
        scores_h: T.handle,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        fours = T.int64()
        taps = T.int64()
        pixels = T.int64()
        channels = T.int64()
        positions = T.int64()
        blocks = T.int64()
        samples = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        q = T.match_buffer(q_h, (rows, fours), "int32", align=4)
        w = T.match_buffer(w_h, (taps, fours, channels), "int32", align=4)
        first = T.match_buffer(first_h, (channels,), "int32", align=4)
        unit = T.match_buffer(unit_h, (channels,), "float32", align=4)
        offset = T.match_buffer(offset_h, (channels,), "float32", align=4)
        step = T.match_buffer(step_h, (samples,), "float32", align=4)
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        for group in T.parallel((positions + (members - 1)) // members):
            row = T.alloc_buffer((members,), "int64")
            place = T.alloc_buffer((2, members), "int64")
            locate(place, group, members, pixels, positions)
            for tile in T.serial(channels // columns):
                low = T.alloc_buffer((members // 2 * vectors, VECTOR), "int32")
                high = T.alloc_buffer((members // 2 * vectors, VECTOR), "int32")
                for u in T.unroll(members // 2):
                    for i in T.unroll(vectors):
                        for v in T.vectorized(VECTOR):
                            low[u * vectors + i, v] = first[tile * columns + i * VECTOR + v]
                        for v in T.vectorized(VECTOR):
                            high[u * vectors + i, v] = first[tile * columns + i * VECTOR + v]
                for tap in T.serial(taps):
                    rows_at(row, table, tap, place, members, area, rows - 1)
                    for k in T.serial(fours):
                        for u in T.unroll(members // 2):
                            for i in T.unroll(vectors):
                                low[u * vectors + i, T.ramp(0, 1, VECTOR)] = dot_bytes(
                                    low[u * vectors + i, T.ramp(0, 1, VECTOR)],
                                    q[row[u], k],
                                    w[tap, k, T.ramp(tile * columns + i * VECTOR, 1, VECTOR)],
                                )
                                high[u * vectors + i, T.ramp(0, 1, VECTOR)] = dot_bytes(
                                    high[u * vectors + i, T.ramp(0, 1, VECTOR)],
                                    q[row[members // 2 + u], k],
                                    w[tap, k, T.ramp(tile * columns + i * VECTOR, 1, VECTOR)],
                                )
                for u in T.unroll(members // 2):
                    for side in T.unroll(2):
                        z = T.alloc_buffer((columns,), "float32")
                        for i in T.unroll(vectors):
                            for v in T.vectorized(VECTOR):
                                z[i * VECTOR + v] = (
                                    T.cast(
                                        T.Select(
                                            side == 0,
                                            low[u * vectors + i, v],
                                            high[u * vectors + i, v],
                                        ),
                                        "float32",
                                    )
                                    * unit[tile * columns + i * VECTOR + v]
                                )
                        p: T.let = group * members + side * (members // 2) + u
                        if p < positions:
                            worth: T.let = step[place[0, side * (members // 2) + u]]
                            write_scores(z, worth, offset, scores, p, tile, blocks, b, columns)

    return kernel


def dot_bytes(acc: Any, row: Any, weights: Any) -> Any:
    """``acc`` int32x16 plus four products a lane: unsigned bytes of ``row``, the same in all lanes,
    by signed bytes of ``weights`` int32x16.
    """
    return T.call_llvm_pure_intrin(
        "int32x16",
        "llvm.x86.avx512.vpdpbusd.512",
        acc,
        T.reinterpret("uint8x64", T.broadcast(row, VECTOR)),
        T.reinterpret("int8x64", weights),
    )


@T.macro
def write_scores(  # type: ignore[no-untyped-def]
    z, worth, offset, scores, p, tile, blocks, b, columns
):
    """Sums ``relu(z * worth + offset)`` over blocks of ``b`` of a register tile (a macro)."""
    for v in T.vectorized(columns):
        z[v] = z[v] * worth + offset[tile * columns + v]
    if b > 1:
        for v in T.vectorized(columns):
            z[v] = T.Select(z[v] < T.float32(0), T.float32(0), z[v])
    for n in T.serial(T.min(T.int64(columns // b), blocks - tile * (columns // b))):
        if b >= 32:
            for v in T.vectorized(16):
                z[n * b + v] = z[n * b + v] + z[n * b + 16 + v]
        if b >= 16:
            for v in T.vectorized(8):
                z[n * b + v] = z[n * b + v] + z[n * b + 8 + v]
        if b >= 8:
            for v in T.vectorized(4):
                z[n * b + v] = z[n * b + v] + z[n * b + 4 + v]
            scores[p, tile * (columns // b) + n] = (z[n * b] + z[n * b + 1]) + (
                z[n * b + 2] + z[n * b + 3]
            )
        else:
            scores[p, tile * (columns // b) + n] = z[n]


def float_scores(b: int, members: int, columns: int) -> Any:
    """The same where there are no 8-bit dot products: rows and weights are whole float32 numbers
    (exact up to 2^24, more than a thousand products).
    """
    name = f"block_scores_{b}"
    half = members // 2

    @T.prim_func(s_tir=True)
    def kernel(
        q_h: T.handle,
        w_h: T.handle,
        first_h: T.handle,
        unit_h: T.handle,
        offset_h: T.handle,
        step_h: T.handle,
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
        samples = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        q = T.match_buffer(q_h, (rows, depth), "float32", align=4)
        w = T.match_buffer(w_h, (taps, depth, channels), "float32", align=4)
        first = T.match_buffer(first_h, (channels,), "float32", align=4)
        unit = T.match_buffer(unit_h, (channels,), "float32", align=4)
        offset = T.match_buffer(offset_h, (channels,), "float32", align=4)
        step = T.match_buffer(step_h, (samples,), "float32", align=4)
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        for group in T.parallel((positions + (members - 1)) // members):
            row = T.alloc_buffer((members,), "int64")
            place = T.alloc_buffer((2, members), "int64")
            locate(place, group, members, pixels, positions)
            for tile in T.serial(channels // columns):
                low = T.alloc_buffer((half, columns), "float32")
                high = T.alloc_buffer((half, columns), "float32")
                begin_sums(low, high, first, half, columns, tile)
                for tap in T.serial(taps):
                    rows_at(row, table, tap, place, members, area, rows - 1)
                    add_products(low, high, q, row, w, tap, depth, half, columns, tile, 0)
                for u in T.unroll(half):
                    for side in T.unroll(2):
                        z = T.alloc_buffer((columns,), "float32")
                        for v in T.vectorized(columns):
                            z[v] = (
                                T.Select(side == 0, low[u, v], high[u, v])
                                * unit[tile * columns + v]
                            )
                        p: T.let = group * members + side * half + u
                        if p < positions:
                            worth: T.let = step[place[0, side * half + u]]
                            write_scores(z, worth, offset, scores, p, tile, blocks, b, columns)

    return kernel
