"""Dense maps as rows ``[positions + 1, width]``, for programs that run without torch.

The last row is zero and stands for every pixel outside the image. Lanes beyond the last channel
are zero as well, and stay so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.larger import INFINITY


def rows_of_maps() -> Any:
    """``y[n * area + a, c] = x[n, c, a]``: PyTorch's order into rows."""

    @T.prim_func(s_tir=True)
    def rows_of_maps(x_h: T.handle, y_h: T.handle):
        T.func_attr({"global_symbol": "rows_of_maps", "tirx.noalias": True})
        samples = T.int64()
        channels = T.int64()
        area = T.int64()
        rows = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (samples, channels, area), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.float32(0)
            if p < samples * area:
                for c in T.serial(channels):
                    y[p, c] = x[p // area, c, p % area]

    return rows_of_maps


def maps_of_rows() -> Any:
    """The inverse of :func:`rows_of_maps`."""

    @T.prim_func(s_tir=True)
    def maps_of_rows(x_h: T.handle, y_h: T.handle):
        T.func_attr({"global_symbol": "maps_of_rows", "tirx.noalias": True})
        samples = T.int64()
        channels = T.int64()
        area = T.int64()
        rows = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (rows, width), "float32", align=4)
        y = T.match_buffer(y_h, (samples, channels, area), "float32", align=4)
        for n in T.parallel(samples):
            for c, a in T.grid(channels, area):
                y[n, c, a] = x[n * area + a, c]

    return maps_of_rows


def finish_rows() -> Any:
    """``y = max(max(x, low) * scale + shift, high)``, and the row of zeros; ``y`` may be ``x``."""

    @T.prim_func(s_tir=True)
    def finish_rows(
        x_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        y_h: T.handle,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": "finish_rows"})
        positions = T.int64()
        rows = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (positions, width), "float32", align=4)
        scale = T.match_buffer(scale_h, (width,), "float32", align=4)
        shift = T.match_buffer(shift_h, (width,), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                if p < positions:
                    y[p, c] = T.Select(x[p, c] < low, low, x[p, c]) * scale[c] + shift[c]
                    y[p, c] = T.Select(y[p, c] < high, high, y[p, c])
                else:
                    y[p, c] = T.float32(0)

    return finish_rows


# By name, of two values and a factor.
COMBINATIONS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "product": lambda a, b, factor: a * b,
    "sum": lambda a, b, factor: a + factor * b,
}


def combine_rows(name: str) -> Any:
    """``y[p] = f(a[p], b[p // pixels], factor)``: ``b`` has a row for so many of ``a``."""
    symbol = f"{name}_rows"
    function = COMBINATIONS[name]

    @T.prim_func(s_tir=True)
    def kernel(a_h: T.handle, b_h: T.handle, y_h: T.handle, pixels: T.int64, factor: T.float32):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        rows = T.int64()
        others = T.int64()
        width = T.int64()
        a = T.match_buffer(a_h, (rows, width), "float32", align=4)
        b = T.match_buffer(b_h, (others, width), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = function(a[p, c], b[p // pixels, c], factor)

    return kernel


def pool_rows(mode: str) -> Any:
    """The maximum, or the sum times ``weight[pixel]``, of the pixels in ``table[tap, pixel]``.

    A sample has ``area`` source pixels; -1 in the table is none. NaN wins a maximum.
    """
    name = f"{mode}_pool_rows"

    @T.prim_func(s_tir=True)
    def average(x_h: T.handle, weight_h: T.handle, y_h: T.handle, table_h: T.handle, area: T.int64):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        source = T.int64()
        width = T.int64()
        rows = T.int64()
        taps = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (source, width), "float32", align=4)
        weight = T.match_buffer(weight_h, (pixels,), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.float32(0)
            if p < rows - 1:
                for tap in T.serial(taps):
                    near: T.let = T.cast(table[tap, p % pixels], "int64")
                    if near >= 0:
                        for c in T.serial(width):
                            y[p, c] = y[p, c] + x[p // pixels * area + near, c]
                for c in T.serial(width):
                    y[p, c] = y[p, c] * weight[p % pixels]

    @T.prim_func(s_tir=True)
    def maximum(x_h: T.handle, weight_h: T.handle, y_h: T.handle, table_h: T.handle, area: T.int64):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        source = T.int64()
        width = T.int64()
        rows = T.int64()
        taps = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (source, width), "float32", align=4)
        weight = T.match_buffer(weight_h, (pixels,), "float32", align=4)  # noqa: F841
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.Select(p < rows - 1, T.float32(-INFINITY), T.float32(0))
            if p < rows - 1:
                for tap in T.serial(taps):
                    near: T.let = T.cast(table[tap, p % pixels], "int64")
                    if near >= 0:
                        for c in T.serial(width):
                            v: T.let = x[p // pixels * area + near, c]
                            # False where v is NaN, true where y is: both stay.
                            y[p, c] = T.Select(
                                v <= T.Select(y[p, c] <= INFINITY, y[p, c], T.float32(INFINITY)),
                                y[p, c],
                                v,
                            )

    return maximum if mode == "max" else average


def take_rows() -> Any:
    """``y[p, before + c] = x[table[p], skip + c]`` for ``channels`` of them: pixels and channels
    moved, left out or added. Zero elsewhere, and where the table has -1.
    """

    @T.prim_func(s_tir=True)
    def take_rows(
        x_h: T.handle,
        y_h: T.handle,
        table_h: T.handle,
        area: T.int64,
        skip: T.int64,
        before: T.int64,
        channels: T.int64,
    ):
        T.func_attr({"global_symbol": "take_rows", "tirx.noalias": True})
        source = T.int64()
        inner = T.int64()
        rows = T.int64()
        width = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (source, inner), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        table = T.match_buffer(table_h, (pixels,), "int32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.float32(0)
            if p < rows - 1:
                near: T.let = T.cast(table[p % pixels], "int64")
                if near >= 0:
                    for c in T.serial(channels):
                        y[p, before + c] = x[p // pixels * area + near, skip + c]

    return take_rows


def row_pointers() -> Any:
    """``pointers[i]``: the sum of the counts before ``i``; one more at the end."""

    @T.prim_func(s_tir=True)
    def row_pointers(counts_h: T.handle, pointers_h: T.handle):
        T.func_attr({"global_symbol": "row_pointers", "tirx.noalias": True})
        count = T.int64()
        ends = T.int64()
        counts = T.match_buffer(counts_h, (count,), "int32", align=4)
        pointers = T.match_buffer(pointers_h, (ends,), "int32", align=4)
        sum = T.alloc_scalar("int32")
        sum = T.int32(0)
        for i in T.serial(count):
            pointers[i] = sum
            sum = sum + counts[i]
        pointers[count] = sum

    return row_pointers


def equal_rows() -> Any:
    """``pointers[i] = i * step``: rows that are all ``step`` long."""

    @T.prim_func(s_tir=True)
    def equal_rows(pointers_h: T.handle, step: T.int32):
        T.func_attr({"global_symbol": "equal_rows", "tirx.noalias": True})
        ends = T.int64()
        pointers = T.match_buffer(pointers_h, (ends,), "int32", align=4)
        for i in T.serial(ends):
            pointers[i] = T.cast(i, "int32") * step

    return equal_rows


def group_rows() -> Any:
    """Rows cut into groups of ``lanes`` channels: ``y[g, p, c] = x[p, g * lanes + c]``."""

    @T.prim_func(s_tir=True)
    def group_rows(x_h: T.handle, y_h: T.handle):
        T.func_attr({"global_symbol": "group_rows", "tirx.noalias": True})
        rows = T.int64()
        width = T.int64()
        groups = T.int64()
        lanes = T.int64()
        x = T.match_buffer(x_h, (rows, width), "float32", align=4)
        y = T.match_buffer(y_h, (groups, rows, lanes), "float32", align=4)
        for p in T.parallel(rows):
            for g, c in T.grid(groups, lanes):
                y[g, p, c] = T.if_then_else(
                    g * lanes + c < width, x[p, g * lanes + c], T.float32(0)
                )

    return group_rows


def every_block() -> Any:
    """Lists by block of rows that choose all blocks, a list a block over all samples."""

    @T.prim_func(s_tir=True)
    def every_block(start_h: T.handle, slot_h: T.handle, sample_h: T.handle, samples: T.int64):
        T.func_attr({"global_symbol": "every_block", "tirx.noalias": True})
        starts = T.int64()
        slots = T.int64()
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        for n in T.serial(starts):
            start[n] = T.cast(n * samples, "int32")
        for n, i in T.grid(starts - 1, samples):
            slot[n * samples + i] = T.cast(i * (starts - 1) + n, "int32")
            sample[n * samples + i] = T.cast(i, "int32")

    return every_block


def close_rows() -> Any:
    """Makes the last row zero."""

    @T.prim_func(s_tir=True)
    def close_rows(x_h: T.handle):
        T.func_attr({"global_symbol": "close_rows", "tirx.noalias": True})
        rows = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (rows, width), "float32", align=4)
        for c in T.serial(width):
            x[rows - 1, c] = T.float32(0)

    return close_rows
