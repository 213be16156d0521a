"""Dense convolution of few input channels: bound by writing its output."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.register_tile import add_products, begin_sums, locate, rows_at


def stem_convolution(columns: int, members: int) -> Any:
    """``y[p] = bias + sum over taps and channels``, a register tile of ``members`` positions by
    ``columns`` outputs at a time. The last row of ``x`` is zero: pixels outside the image.
    """
    name = f"stem_convolution_{columns}"
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
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        x = T.match_buffer(x_h, (rows, channels), "float32", align=4)
        w = T.match_buffer(w_h, (taps, channels, outputs), "float32", align=4)
        bias = T.match_buffer(bias_h, (outputs,), "float32", align=4)
        y = T.match_buffer(y_h, (positions, outputs), "float32", align=4)
        for group in T.parallel((positions + (members - 1)) // members):
            row = T.alloc_buffer((members,), "int64")
            place = T.alloc_buffer((2, members), "int64")
            locate(place, group, members, pixels, positions)
            for tile in T.serial(outputs // columns):
                low = T.alloc_buffer((half, columns), "float32")
                high = T.alloc_buffer((half, columns), "float32")
                begin_sums(low, high, bias, half, columns, tile)
                for tap in T.serial(taps):
                    rows_at(row, table, tap, place, members, area, rows - 1)
                    add_products(low, high, x, row, w, tap, channels, half, columns, tile)
                for u in T.unroll(half):
                    for v in T.vectorized(columns):
                        y[T.min(group * members + u, positions - 1), tile * columns + v] = low[u, v]
                    for v in T.vectorized(columns):
                        y[T.min(group * members + half + u, positions - 1), tile * columns + v] = (
                            high[u, v]
                        )

    return kernel
