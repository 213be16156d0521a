"""The larger of two vectors, where NaN is larger than everything and stays.

Written as one comparison that is false for NaN: asking for NaN by itself as well makes LLVM take
masks apart, which is three times slower.
"""

from __future__ import annotations

from tvm.script import tirx as T

INFINITY = float("inf")


@T.macro
def keep_larger(best, winner, value, tap, lanes):  # type: ignore[no-untyped-def]
    """``best = max(best, value)``, and ``winner = tap`` where that is new."""
    for u in T.vectorized(lanes):
        winner[u] = T.Select(
            value[u] <= T.Select(best[u] <= INFINITY, best[u], T.float32(INFINITY)), winner[u], tap
        )
    for u in T.vectorized(lanes):
        best[u] = T.Select(
            value[u] <= T.Select(best[u] <= INFINITY, best[u], T.float32(INFINITY)),
            best[u],
            value[u],
        )
