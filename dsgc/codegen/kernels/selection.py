"""The choice of winners."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import VECTOR


def rank_winners(capacity: int) -> Any:
    """The ``winners`` largest of at most ``capacity`` scores of each row, by ascending index; ties
    go to the lower index, NaN counts as infinity.

    A score wins if fewer than ``winners`` others are better: every score is compared with all, 16
    at a time, and nothing depends on a branch.
    """

    @T.prim_func(s_tir=True)
    def kernel(scores_h: T.handle, index_h: T.handle):
        T.func_attr({"global_symbol": f"rank_winners_{capacity}", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        winners = T.int64()
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        index = T.match_buffer(index_h, (positions, winners), "int32", align=4)
        for p in T.parallel(positions):
            score = T.alloc_buffer((capacity,), "float32")
            won = T.alloc_buffer((capacity,), "int32")
            for n in T.serial(blocks):
                score[n] = T.Select(T.isnan(scores[p, n]), T.float32(float("inf")), scores[p, n])
            for group in T.serial((blocks + (VECTOR - 1)) // VECTOR):
                better = T.alloc_buffer((VECTOR,), "int32")
                for v in T.vectorized(VECTOR):
                    better[v] = 0
                for m in T.serial(blocks):
                    for v in T.vectorized(VECTOR):
                        better[v] = better[v] + T.cast(
                            (score[m] > score[group * VECTOR + v])
                            | (
                                (score[m] == score[group * VECTOR + v])
                                & (T.cast(m, "int32") < T.cast(group * VECTOR, "int32") + v)
                            ),
                            "int32",
                        )
                for v in T.vectorized(VECTOR):
                    won[group * VECTOR + v] = T.cast(better[v] < T.cast(winners, "int32"), "int32")
            place = T.alloc_scalar("int64")
            chosen = T.alloc_buffer((capacity,), "int32")
            place = T.int64(0)
            for n in T.serial(blocks):
                chosen[place] = T.cast(n, "int32")
                place = place + T.cast(won[n], "int64")
            for i in T.serial(winners):
                index[p, i] = chosen[i]

    return kernel
