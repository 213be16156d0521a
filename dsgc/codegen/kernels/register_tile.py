"""Sums in registers: tiles of ``members`` neighbouring positions by some channels, over a dense
input; products with a kept block of weights; and blocks of a gradient.

The steps that several kernels share, as macros: their arguments are buffers and numbers.
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
def add_products(low, high, x, row, w, tap, depth, half, columns, tile, first):  # type: ignore[no-untyped-def]
    """Adds what one tap gives: ``depth`` channels of every member's row, from ``first`` on, times
    ``w[tap]``.
    """
    for k in T.serial(depth):
        for u in T.unroll(half):
            for v in T.vectorized(columns):
                low[u, v] = low[u, v] + x[row[u], first + k] * w[tap, k, tile * columns + v]
            for v in T.vectorized(columns):
                high[u, v] = (
                    high[u, v] + x[row[half + u], first + k] * w[tap, k, tile * columns + v]
                )


@T.macro
def add_to_row(sums, at, x, q, first, kept, depth, lanes):  # type: ignore[no-untyped-def]
    """Adds ``depth`` values of ``x[q]`` from ``first`` on, times the rows of ``kept``, to
    ``sums[at]``: even and odd ones apart, so that not every sum waits for the one before.
    """
    acc = T.alloc_buffer((2, lanes), "float32")
    for v in T.vectorized(lanes):
        acc[0, v] = sums[at, v]
    for v in T.vectorized(lanes):
        acc[1, v] = T.float32(0)
    for s in T.unroll(depth):
        for v in T.vectorized(lanes):
            acc[s % 2, v] = acc[s % 2, v] + x[q, first + s] * kept[s, v]
    for v in T.vectorized(lanes):
        sums[at, v] = acc[0, v] + acc[1, v]


@T.macro
def add_outer(low, high, a, i, b, j, first, rows, half, lanes):  # type: ignore[no-untyped-def]
    """Adds ``outer(a[i, first : first + rows], b[j])`` to a block that lies in two halves, the
    second of them empty if ``rows`` is one.
    """
    for s in T.unroll(half):
        for v in T.vectorized(lanes):
            low[s, v] = low[s, v] + a[i, first + s] * b[j, v]
        if rows > 1:
            for v in T.vectorized(lanes):
                high[s, v] = high[s, v] + a[i, first + half + s] * b[j, v]
