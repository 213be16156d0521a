"""Dense convolution of channels-last rows into all of its outputs."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.register_tile import add_products, begin_sums, locate, rows_at

# Register tiles whose input rows and weights stay in the second-level cache together.
_CHUNK = 16
# Chunks up to which tasks of the same weights follow each other; beyond, those of the same rows.
_FEW_CHUNKS = 8


def plain_convolution(columns: int, members: int) -> Any:
    """``y[p] = bias + sum over taps and channels``, a register tile of ``members`` positions by
    ``columns`` outputs at a time; the weights of ``columns`` outputs lie together. The last row of
    ``x`` is zero: pixels outside the image.
    """
    name = f"plain_convolution_{columns}"
    half = members // 2

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        y_h: T.handle,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        channels = T.int64()
        taps = T.int64()
        pixels = T.int64()
        outputs = T.int64()
        positions = T.int64()
        parts = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, channels), "float32", align=4)
        # [tiles * taps, channels, columns]
        w = T.match_buffer(w_h, (parts, channels, T.int64(columns)), "float32", align=4)
        bias = T.match_buffer(bias_h, (outputs,), "float32", align=4)
        y = T.match_buffer(y_h, (positions, outputs), "float32", align=4)
        tiles: T.let = outputs // columns
        groups: T.let = (positions + (members - 1)) // members
        chunks: T.let = (groups + (_CHUNK - 1)) // _CHUNK
        for task in T.parallel(chunks * tiles):
            together: T.let = chunks <= _FEW_CHUNKS
            tile: T.let = T.Select(together, task // T.max(chunks, 1), task % tiles)
            chunk: T.let = T.Select(together, task % T.max(chunks, 1), task // tiles)
            row = T.alloc_buffer((members,), "int64")
            place = T.alloc_buffer((2, members), "int64")
            for i in T.serial(T.min(groups - chunk * _CHUNK, _CHUNK)):
                group: T.let = chunk * _CHUNK + i
                locate(place, group, members, pixels, positions)
                low = T.alloc_buffer((half, columns), "float32")
                high = T.alloc_buffer((half, columns), "float32")
                begin_sums(low, high, bias, half, columns, tile)
                for tap in T.serial(taps):
                    rows_at(row, table, tap, place, members, area, rows - 1)
                    add_products(
                        low, high, x, row, w, tile * taps + tap, channels, half, columns, 0
                    )
                for u in T.unroll(half):
                    for v in T.vectorized(columns):
                        y[T.min(group * members + u, positions - 1), tile * columns + v] = low[u, v]
                    for v in T.vectorized(columns):
                        y[T.min(group * members + half + u, positions - 1), tile * columns + v] = (
                            high[u, v]
                        )

    return kernel
