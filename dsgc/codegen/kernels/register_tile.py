"""Register tiles of ``members`` neighbouring positions by some channels, over a dense input.

The steps that kernels with such a tile share, as macros: their arguments are buffers and numbers.
"""

from __future__ import annotations

from tvm.script import tirx as T


@T.macro
def locate(place, group, members, pixels, positions):  # type: ignore[no-untyped-def]
    """``place[0, u]`` and ``place[1, u]``: sample and pixel of member ``u``; beyond the last
    position, those of the last.
    """
    for u in T.unroll(members):
        place[0, u] = T.min(group * members + u, positions - 1) // pixels
        place[1, u] = T.min(group * members + u, positions - 1) % pixels


@T.macro
def rows_at(row, table, tap, place, members, area, nowhere):  # type: ignore[no-untyped-def]
    """``row[u]``: the source row that ``tap`` of member ``u`` touches, ``nowhere`` outside."""
    for u in T.unroll(members):
        near: T.let = table[tap, place[1, u]]
        row[u] = T.Select(near >= 0, place[0, u] * area + T.cast(near, "int64"), nowhere)


@T.macro
def begin_sums(low, high, first, half, columns, tile):  # type: ignore[no-untyped-def]
    """Both halves of the tile at ``first`` of their channels."""
    for u in T.unroll(half):
        for v in T.vectorized(columns):
            low[u, v] = first[tile * columns + v]
        for v in T.vectorized(columns):
            high[u, v] = first[tile * columns + v]


@T.macro
def add_products(low, high, x, row, w, tap, depth, half, columns, tile):  # type: ignore[no-untyped-def]
    """Adds what one tap gives: ``depth`` channels of every member's row times ``w[tap]``."""
    for k in T.serial(depth):
        for u in T.unroll(half):
            for v in T.vectorized(columns):
                low[u, v] = low[u, v] + x[row[u], k] * w[tap, k, tile * columns + v]
            for v in T.vectorized(columns):
                high[u, v] = high[u, v] + x[row[half + u], k] * w[tap, k, tile * columns + v]
