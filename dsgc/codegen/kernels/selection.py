"""The choice of winners."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import FEW_BLOCKS, VECTOR

_RANKED_ROWS = 1024  # that a task of rank_few ranks


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


def rank_few() -> Any:
    """:func:`rank_winners` of at most 32 scores a row, for 16 rows side by side.

    The best score of every row is found and struck out, ``winners`` times, on integers in the order
    of the scores. What was found is a bit for each score, which comes back by ascending index.
    """

    @T.prim_func(s_tir=True)
    def rank_few(scores_h: T.handle, index_h: T.handle):
        T.func_attr({"global_symbol": "rank_few", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        winners = T.int64()
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        index = T.match_buffer(index_h, (positions, winners), "int32", align=4)
        for task in T.parallel((positions + (_RANKED_ROWS - 1)) // _RANKED_ROWS):
            key = T.alloc_buffer((FEW_BLOCKS, VECTOR), "int32")
            begin: T.let = task * _RANKED_ROWS
            count: T.let = T.min(positions - begin, T.int64(_RANKED_ROWS))
            for group in T.serial((count + (VECTOR - 1)) // VECTOR):
                bits = T.alloc_buffer((VECTOR,), "int32")
                best = T.alloc_buffer((VECTOR,), "int32")
                at = T.alloc_buffer((VECTOR,), "int32")
                first: T.let = begin + group * VECTOR
                for v in T.serial(VECTOR):
                    row: T.let = T.min(first + v, positions - 1)
                    for n in T.serial(blocks):
                        key[n, v] = T.reinterpret("int32", scores[row, n])
                for n in T.serial(blocks):
                    # NaN becomes infinity, a negative zero a positive one.
                    for v in T.vectorized(VECTOR):
                        key[n, v] = T.Select(
                            (key[n, v] & T.int32(0x7FFFFFFF)) > T.int32(0x7F800000),
                            T.int32(0x7F800000),
                            T.Select(key[n, v] == T.int32(-(2**31)), 0, key[n, v]),
                        )
                    for v in T.vectorized(VECTOR):
                        key[n, v] = key[n, v] ^ ((key[n, v] >> 31) & T.int32(0x7FFFFFFF))
                for v in T.vectorized(VECTOR):
                    bits[v] = 0
                for _ in T.serial(winners):
                    for v in T.vectorized(VECTOR):
                        best[v] = T.int32(-(2**31))
                    for v in T.vectorized(VECTOR):
                        at[v] = 0
                    for n in T.serial(blocks):
                        for v in T.vectorized(VECTOR):
                            at[v] = T.Select(key[n, v] > best[v], T.cast(n, "int32"), at[v])
                        for v in T.vectorized(VECTOR):
                            best[v] = T.max(best[v], key[n, v])
                    for n in T.serial(blocks):
                        for v in T.vectorized(VECTOR):
                            key[n, v] = T.Select(
                                at[v] == T.cast(n, "int32"), T.int32(-(2**31)), key[n, v]
                            )
                    for v in T.vectorized(VECTOR):
                        bits[v] = bits[v] | (T.int32(1) << at[v])
                for i in T.serial(winners):
                    for v in T.vectorized(VECTOR):
                        at[v] = T.popcount((bits[v] & (T.int32(0) - bits[v])) - 1)
                    for v in T.vectorized(VECTOR):
                        bits[v] = bits[v] & (bits[v] - 1)
                    for v in T.serial(T.min(positions - first, T.int64(VECTOR))):
                        index[first + v, i] = at[v]

    return rank_few


def rank_bits(capacity: int) -> Any:
    """:func:`rank_winners` as a bitmask: bit ``j`` of byte ``i`` stands for score ``8 * i + j``.

    Meant for many scores a row (single neurons): it finds the lowest winning score bit by bit, on
    integers in the order of the scores, which costs 48 counts and no comparison of all with all.
    """

    @T.prim_func(s_tir=True)
    def kernel(scores_h: T.handle, bits_h: T.handle, winners: T.int32):
        T.func_attr({"global_symbol": f"rank_bits_{capacity}", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        width = T.int64()
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        bits = T.match_buffer(bits_h, (positions, width), "uint8", align=1)
        for p in T.parallel(positions):
            key = T.alloc_buffer((capacity,), "uint32")
            won = T.alloc_buffer((capacity,), "int32")
            level = T.alloc_scalar("uint32")
            reached = T.alloc_scalar("int32")
            surplus = T.alloc_scalar("int32")
            number = T.alloc_buffer((VECTOR,), "int32")
            groups: T.let = (blocks + (VECTOR - 1)) // VECTOR
            score = T.alloc_buffer((capacity,), "float32")
            for n in T.serial(blocks):
                score[n] = scores[p, n]
            for group in T.serial(groups):
                for v in T.vectorized(VECTOR):
                    # A negative zero is as good as a positive one.
                    score[group * VECTOR + v] = T.Select(
                        T.isnan(score[group * VECTOR + v]),
                        T.float32(float("inf")),
                        score[group * VECTOR + v] + T.float32(0),
                    )
                for v in T.vectorized(VECTOR):
                    number[v] = T.reinterpret("int32", score[group * VECTOR + v])
                for v in T.vectorized(VECTOR):
                    number[v] = number[v] ^ ((number[v] >> 31) | T.int32(-2147483648))
                for v in T.vectorized(VECTOR):
                    key[group * VECTOR + v] = T.reinterpret("uint32", number[v])
            for i in T.serial(groups * VECTOR - blocks):
                key[blocks + i] = T.uint32(0)  # below every score
            level = T.uint32(0)
            for step in T.serial(16):
                # The three ways to set the next two bits are tried together: a count has to wait
                # for the one before.
                unit: T.let = T.uint32(1) << T.cast(30 - 2 * step, "uint32")
                counts = T.alloc_buffer((3, VECTOR), "int32")
                for i in T.unroll(3):
                    for v in T.vectorized(VECTOR):
                        counts[i, v] = 0
                for group in T.serial(groups):
                    for i in T.unroll(3):
                        for v in T.vectorized(VECTOR):
                            counts[i, v] = counts[i, v] + T.cast(
                                key[group * VECTOR + v] >= level + T.cast(i + 1, "uint32") * unit,
                                "int32",
                            )
                reached = 0
                for i in T.unroll(3):
                    for v in T.vectorized(VECTOR // 2):
                        counts[i, v] = counts[i, v] + counts[i, VECTOR // 2 + v]
                    for v in T.vectorized(VECTOR // 4):
                        counts[i, v] = counts[i, v] + counts[i, VECTOR // 4 + v]
                    count: T.let = (counts[i, 0] + counts[i, 1]) + (counts[i, 2] + counts[i, 3])
                    reached = reached + T.cast(count >= winners, "int32")
                level = level + T.cast(reached, "uint32") * unit
            surplus = -winners
            for group in T.serial(groups):
                for v in T.vectorized(VECTOR):
                    won[group * VECTOR + v] = T.cast(key[group * VECTOR + v] >= level, "int32")
                for v in T.unroll(VECTOR):
                    surplus = surplus + won[group * VECTOR + v]
            if surplus > 0:  # ties: the last of them lose
                for i in T.serial(blocks):
                    n: T.let = blocks - 1 - i
                    if (key[n] == level) & (surplus > 0):
                        won[n] = 0
                        surplus = surplus - 1
            for i in T.serial(width):
                byte = T.alloc_scalar("int32")
                byte = 0
                for j in T.unroll(8):
                    byte = byte | (won[i * 8 + j] << j)
                bits[p, i] = T.cast(byte, "uint8")

    return kernel


def mark_above() -> Any:
    """Bitmasks of the scores at or above the threshold of their sample, and how many there are.

    ``strict``, the published rule: above it, and not exactly zero. NaN is never selected.
    """

    @T.prim_func(s_tir=True)
    def mark_above(
        scores_h: T.handle,
        threshold_h: T.handle,
        bits_h: T.handle,
        counts_h: T.handle,
        strict: T.int32,
    ):
        T.func_attr({"global_symbol": "mark_above", "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        width = T.int64()
        samples = T.int64()
        scores = T.match_buffer(scores_h, (positions, blocks), "float32", align=4)
        threshold = T.match_buffer(threshold_h, (samples,), "float32", align=4)
        bits = T.match_buffer(bits_h, (positions, width), "uint8", align=1)
        counts = T.match_buffer(counts_h, (positions,), "int32", align=4)
        for p in T.parallel(positions):
            limit: T.let = threshold[p // (positions // samples)]
            found = T.alloc_scalar("int32")
            byte = T.alloc_scalar("int32")
            found = 0
            for i in T.serial(width):
                byte = 0
                for j in T.unroll(8):
                    z: T.let = T.if_then_else(
                        i * 8 + j < blocks, scores[p, T.min(i * 8 + j, blocks - 1)], limit
                    )
                    above: T.let = T.if_then_else(
                        strict != 0, (z > limit) & (z != T.float32(0)), z >= limit
                    )
                    chosen: T.let = T.cast(above & (i * 8 + j < blocks), "int32")
                    byte = byte | (chosen << j)
                    found = found + chosen
                bits[p, i] = T.cast(byte, "uint8")
            counts[p] = found

    return mark_above
