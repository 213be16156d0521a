"""Max pooling of dense maps, ``[positions, blocks, 16 channels]``, activated on the way.

``table[tap, pixel]`` is the source pixel of the same sample, or -1 for padding.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.larger import INFINITY, keep_larger
from dsgc.codegen.tiles import DENSE_BLOCK


def max_pool_map() -> Any:
    """``y[p]``: the largest activated value of its window, and ``argmax[p]`` the first tap of it.

    NaN wins. A window that holds nothing but minus infinity has its first pixel as tap.
    """
    lanes = DENSE_BLOCK

    @T.prim_func(s_tir=True)
    def max_pool_map(
        x_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        y_h: T.handle,
        argmax_h: T.handle,
        table_h: T.handle,
        area: T.int64,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": "max_pool_map", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        places = T.int64()
        taps = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (positions, blocks, lanes), "float32", align=4)
        scale = T.match_buffer(scale_h, (blocks, lanes), "float32", align=4)
        shift = T.match_buffer(shift_h, (blocks, lanes), "float32", align=4)
        y = T.match_buffer(y_h, (places, blocks, lanes), "float32", align=4)
        argmax = T.match_buffer(argmax_h, (places, blocks, lanes), "uint8", align=1)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(places):
            opening = T.alloc_scalar("int32")
            opening = T.int32(-1)
            for t in T.serial(taps):
                if (opening < 0) & (table[t, p % pixels] >= 0):
                    opening = T.cast(t, "int32")
            for c in T.serial(blocks):
                z = T.alloc_buffer((lanes,), "float32")
                best = T.alloc_buffer((lanes,), "float32")
                winner = T.alloc_buffer((lanes,), "int32")
                for u in T.vectorized(lanes):
                    best[u] = T.float32(-INFINITY)
                for u in T.vectorized(lanes):
                    winner[u] = opening
                for t in T.serial(taps):
                    near: T.let = T.cast(table[t, p % pixels], "int64")
                    if near >= 0:
                        q: T.let = p // pixels * area + near
                        for u in T.vectorized(lanes):
                            z[u] = (
                                T.Select(x[q, c, u] < low, low, x[q, c, u]) * scale[c, u]
                                + shift[c, u]
                            )
                        for u in T.vectorized(lanes):
                            z[u] = T.Select(z[u] < high, high, z[u])
                        keep_larger(best, winner, z, T.cast(t, "int32"), lanes)
                for u in T.vectorized(lanes):
                    argmax[p, c, u] = T.cast(winner[u], "uint8")
                for u in T.vectorized(lanes):
                    y[p, c, u] = best[u]

    return max_pool_map


def max_pool_map_backward() -> Any:
    """``dx[q]``: every pixel gathers from the windows of which it is the maximum.

    Here ``table[tap, pixel]`` is the output pixel whose window has the input pixel at that tap.
    """
    lanes = DENSE_BLOCK

    @T.prim_func(s_tir=True)
    def max_pool_map_backward(
        dy_h: T.handle, argmax_h: T.handle, dx_h: T.handle, table_h: T.handle, area: T.int64
    ):
        T.func_attr({"global_symbol": "max_pool_map_backward", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        places = T.int64()
        taps = T.int64()
        pixels = T.int64()
        dy = T.match_buffer(dy_h, (places, blocks, lanes), "float32", align=4)
        argmax = T.match_buffer(argmax_h, (places, blocks, lanes), "uint8", align=1)
        dx = T.match_buffer(dx_h, (positions, blocks, lanes), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for q in T.parallel(positions):
            for c in T.serial(blocks):
                sums = T.alloc_buffer((lanes,), "float32")
                for u in T.vectorized(lanes):
                    sums[u] = T.float32(0)
                for t in T.serial(taps):
                    near: T.let = T.cast(table[t, q % pixels], "int64")
                    if near >= 0:
                        p: T.let = q // pixels * area + near
                        for u in T.vectorized(lanes):
                            sums[u] = sums[u] + T.Select(
                                T.cast(argmax[p, c, u], "int32") == T.cast(t, "int32"),
                                dy[p, c, u],
                                T.float32(0),
                            )
                for u in T.vectorized(lanes):
                    dx[q, c, u] = sums[u]

    return max_pool_map_backward
