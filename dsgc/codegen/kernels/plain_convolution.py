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
        _convolve(x, w, bias, y, table, area, None, columns, members, half)

    return kernel


def grouped_convolution(columns: int, members: int) -> Any:
    """As :func:`plain_convolution`, but the outputs of a tile read no more than the channels from
    ``start[tile]`` on, as many as ``w`` has.
    """
    name = f"grouped_convolution_{columns}"
    half = members // 2

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        y_h: T.handle,
        table_h: T.handle,
        start_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        width = T.int64()
        depth = T.int64()
        taps = T.int64()
        pixels = T.int64()
        outputs = T.int64()
        positions = T.int64()
        parts = T.int64()
        tiles = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        start = T.match_buffer(start_h, (tiles,), "int32", align=4)
        x = T.match_buffer(x_h, (rows, width), "float32", align=4)
        # [tiles * taps, depth, columns]
        w = T.match_buffer(w_h, (parts, depth, T.int64(columns)), "float32", align=4)
        bias = T.match_buffer(bias_h, (outputs,), "float32", align=4)
        y = T.match_buffer(y_h, (positions, outputs), "float32", align=4)
        _convolve(x, w, bias, y, table, area, start, columns, members, half)

    return kernel


def _first_channel(start: Any, tile: Any) -> Any:
    return T.int64(0) if start is None else T.cast(start[tile], "int64")


@T.macro
def _convolve(x, w, bias, y, table, area, start, columns, members, half):  # type: ignore[no-untyped-def]
    tiles: T.let = y.shape[1] // columns
    groups: T.let = (y.shape[0] + (members - 1)) // members
    chunks: T.let = (groups + (_CHUNK - 1)) // _CHUNK
    for task in T.parallel(chunks * tiles):
        together: T.let = chunks <= _FEW_CHUNKS
        tile: T.let = T.Select(together, task // T.max(chunks, 1), task % tiles)
        chunk: T.let = T.Select(together, task % T.max(chunks, 1), task // tiles)
        first: T.let = _first_channel(start, tile)
        row = T.alloc_buffer((members,), "int64")
        place = T.alloc_buffer((2, members), "int64")
        for i in T.serial(T.min(groups - chunk * _CHUNK, _CHUNK)):
            group: T.let = chunk * _CHUNK + i
            locate(place, group, members, table.shape[1], y.shape[0])
            low = T.alloc_buffer((half, columns), "float32")
            high = T.alloc_buffer((half, columns), "float32")
            begin_sums(low, high, bias, half, columns, tile)
            for tap in T.serial(table.shape[0]):
                rows_at(row, table, tap, place, members, area, x.shape[0] - 1)
                part: T.let = tile * table.shape[0] + tap
                add_products(low, high, x, row, w, part, w.shape[1], half, columns, 0, first)
            for u in T.unroll(half):
                for v in T.vectorized(columns):
                    y[T.min(group * members + u, y.shape[0] - 1), tile * columns + v] = low[u, v]
                for v in T.vectorized(columns):
                    y[T.min(group * members + half + u, y.shape[0] - 1), tile * columns + v] = high[
                        u, v
                    ]
