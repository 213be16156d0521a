"""The choice of winners."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def rank_winners() -> Any:
    """The ``winners`` largest scores of each row, by ascending index; ties go to the lower index,
    NaN counts as infinity.
    """

    @T.prim_func(s_tir=True)
    def rank_winners(scores_h: T.handle, index_h: T.handle):
        T.func_attr({"global_symbol": "rank_winners", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        winners = T.int64()
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        index = T.match_buffer(index_h, (positions, winners), "int32", align=4)
        for p in T.parallel(positions):
            place = T.alloc_scalar("int64")
            better = T.alloc_scalar("int32")
            place = T.int64(0)
            for n in T.serial(blocks):
                mine: T.let = T.Select(T.isnan(scores[p, n]), T.float32(float("inf")), scores[p, n])
                better = 0
                for m in T.serial(n):
                    better = better + T.cast(
                        (scores[p, m] >= mine) | T.isnan(scores[p, m]), "int32"
                    )
                for m in T.serial(blocks - n - 1):
                    other: T.let = scores[p, n + 1 + m]
                    better = better + T.cast(
                        (other > mine) | (T.isnan(other) & (mine < T.float32(float("inf")))),
                        "int32",
                    )
                if T.cast(better, "int64") < winners:
                    index[p, place] = T.cast(n, "int32")
                    place = place + 1

    return rank_winners
