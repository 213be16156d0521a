"""The kernel that finds out how fast this machine can multiply and add."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


def multiply_add(accumulators: int, lanes: int) -> Any:
    """Every task does ``accumulators`` x ``lanes`` chains of ``rounds`` multiply-adds in registers.

    The chains do not depend on each other, so that there is always one whose turn it is. Each is
    ``a = a * factor + term``: the product differs every time, or it would be taken out of the loop.
    ``width`` is told how many chains there are.
    """

    @T.prim_func(s_tir=True)
    def kernel(x_h: T.handle, y_h: T.handle, width_h: T.handle, rounds: T.int64):
        T.func_attr({"global_symbol": "multiply_add", "tirx.noalias": True})
        tasks = T.int64()
        x = T.match_buffer(x_h, (2,), "float32", align=4)
        y = T.match_buffer(y_h, (tasks,), "float32", align=4)
        width = T.match_buffer(width_h, (1,), "int64", align=4)
        width[0] = T.int64(accumulators * lanes)
        for task in T.parallel(tasks):
            factor: T.let = x[0]
            term: T.let = x[1]
            a = T.alloc_buffer((accumulators, lanes), "float32")
            for u in T.unroll(accumulators):
                for v in T.vectorized(lanes):
                    a[u, v] = T.cast(u, "float32")
            for _ in T.serial(rounds):
                for u in T.unroll(accumulators):
                    for v in T.vectorized(lanes):
                        a[u, v] = a[u, v] * factor + term
            # Everything is read in the end, or nothing would have to be computed.
            for u in T.unroll(1, accumulators):
                for v in T.vectorized(lanes):
                    a[0, v] = a[0, v] + a[u, v]
            y[task] = T.float32(0)
            for v in T.serial(lanes):
                y[task] = y[task] + a[0, v]

    return kernel
