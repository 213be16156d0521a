"""Layer normalisation of rows, for programs that run without torch."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import DENSE_BLOCK


def norm_rows() -> Any:
    """``y[p] = (x[p] - mean) / sqrt(variance + eps) * scale + shift``, over the first ``channels``
    of a row. Sums are kept by lane: one number after the other would wait for its turn.
    """

    @T.prim_func(s_tir=True)
    def norm_rows(
        x_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        y_h: T.handle,
        channels: T.int64,
        eps: T.float32,
    ):
        T.func_attr({"global_symbol": "norm_rows", "tirx.noalias": True})
        rows = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (rows, width), "float32", align=4)
        scale = T.match_buffer(scale_h, (width,), "float32", align=4)
        shift = T.match_buffer(shift_h, (width,), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        for p in T.parallel(rows):
            part = T.alloc_buffer((DENSE_BLOCK,), "float32")
            mean = T.alloc_scalar("float32")
            factor = T.alloc_scalar("float32")
            for v in T.vectorized(DENSE_BLOCK):
                part[v] = T.float32(0)
            for g in T.serial(width // DENSE_BLOCK):
                for v in T.vectorized(DENSE_BLOCK):
                    part[v] = part[v] + x[p, g * DENSE_BLOCK + v]
            mean = T.float32(0)
            for v in T.serial(DENSE_BLOCK):
                mean = mean + part[v]
            mean = mean / T.cast(channels, "float32")
            for v in T.vectorized(DENSE_BLOCK):
                part[v] = T.float32(0)
            for g in T.serial(width // DENSE_BLOCK):
                for v in T.vectorized(DENSE_BLOCK):
                    part[v] = part[v] + T.Select(
                        g * DENSE_BLOCK + v < channels,
                        (x[p, g * DENSE_BLOCK + v] - mean) * (x[p, g * DENSE_BLOCK + v] - mean),
                        T.float32(0),
                    )
            factor = T.float32(0)
            for v in T.serial(DENSE_BLOCK):
                factor = factor + part[v]
            factor = T.float32(1) / T.sqrt(factor / T.cast(channels, "float32") + eps)
            for c in T.serial(width):
                y[p, c] = T.Select(
                    T.And(p < rows - 1, c < channels),
                    (x[p, c] - mean) * factor * scale[c] + shift[c],
                    T.float32(0),
                )

    return norm_rows
