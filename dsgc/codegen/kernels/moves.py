"""Pixels of maps that are weighed, and channels in another order, for programs without torch."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def blend_rows() -> Any:
    """``y[p] = sum over taps of weight[tap, pixel] * x[table[tap, pixel]]``: interpolation.

    A sample has ``area`` source pixels.
    """

    @T.prim_func(s_tir=True)
    def blend_rows(
        x_h: T.handle, weight_h: T.handle, y_h: T.handle, table_h: T.handle, area: T.int64
    ):
        T.func_attr({"global_symbol": "blend_rows", "tirx.noalias": True})
        source = T.int64()
        width = T.int64()
        rows = T.int64()
        taps = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (source, width), "float32", align=4)
        weight = T.match_buffer(weight_h, (taps, pixels), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.float32(0)
            if p < rows - 1:
                for tap in T.serial(taps):
                    near: T.let = T.cast(table[tap, p % pixels], "int64")
                    row: T.let = p // pixels * area + near
                    part: T.let = weight[tap, p % pixels]
                    for c in T.serial(width):
                        y[p, c] = y[p, c] + part * x[row, c]

    return blend_rows


def gather_rows() -> Any:
    """``y[p, c] = x[table[pixel], skip[pixel] + channels[c]]``: channels in another order, and
    pixels that lie in channels. Zero where ``table`` or ``channels`` has -1.

    A sample has ``area`` source pixels.
    """

    @T.prim_func(s_tir=True)
    def gather_rows(
        x_h: T.handle,
        y_h: T.handle,
        table_h: T.handle,
        skip_h: T.handle,
        channels_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": "gather_rows", "tirx.noalias": True})
        source = T.int64()
        inner = T.int64()
        rows = T.int64()
        width = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (source, inner), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        table = T.match_buffer(table_h, (pixels,), "int32", align=4)
        skip = T.match_buffer(skip_h, (pixels,), "int32", align=4)
        channels = T.match_buffer(channels_h, (width,), "int32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.float32(0)
            if p < rows - 1:
                near: T.let = T.cast(table[p % pixels], "int64")
                if near >= 0:
                    row: T.let = p // pixels * area + near
                    first: T.let = T.cast(skip[p % pixels], "int64")
                    for c in T.serial(width):
                        # Without a branch, so that vectors are gathered: 0 stands for none.
                        channel: T.let = T.cast(T.max(channels[c], 0), "int64")
                        y[p, c] = T.Select(
                            channels[c] >= 0,
                            x[row, first + channel],
                            T.float32(0),
                        )

    return gather_rows
