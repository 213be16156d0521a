"""Dense linear layers of very few samples: inputs that are zero, as ReLU leaves them, are skipped.

With few samples a linear layer does nothing but stream its weights, and a weight whose input is
zero need not be read. Weights are stored by strip of ``STRIP`` outputs, input by input.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.prefetch import fetch
from dsgc.codegen.tiles import ROW_LANES as LANES
from dsgc.codegen.tiles import SKIP_STRIP as STRIP

AHEAD = 12  # inputs whose weights are on their way while one is multiplied
VECTORS = STRIP // LANES


def nonzero_columns() -> Any:
    """``index[n, :count[n]]``: the columns of ``x[n]`` that are not zero, in order."""

    @T.prim_func(s_tir=True)
    def nonzero_columns(x_h: T.handle, index_h: T.handle, count_h: T.handle):
        T.func_attr({"global_symbol": "nonzero_columns", "tirx.noalias": True})
        samples = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (samples, width), "float32", align=4)
        index = T.match_buffer(index_h, (samples, width), "int32", align=4)
        count = T.match_buffer(count_h, (samples,), "int32", align=4)
        for n in T.serial(samples):
            found = T.alloc_scalar("int64")
            found = T.int64(0)
            for c in T.serial(width):
                # Written in any case and overwritten if it was zero: there is no branch to guess.
                index[n, found] = T.cast(c, "int32")
                # Not "unlike zero", which a NaN is not to LLVM.
                found = found + T.Select(x[n, c] == T.float32(0), T.int64(0), T.int64(1))
            count[n] = T.cast(found, "int32")

    return nonzero_columns


def skip_products() -> Any:
    """``y[n] = bias + sum of x[n, c] * w[:, c]`` over the columns ``c`` in ``index[n]``."""

    @T.prim_func(s_tir=True)
    def skip_products(
        x_h: T.handle,
        index_h: T.handle,
        count_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        y_h: T.handle,
    ):
        T.func_attr({"global_symbol": "skip_products", "tirx.noalias": True})
        samples = T.int64()
        width = T.int64()
        strips = T.int64()
        x = T.match_buffer(x_h, (samples, width), "float32", align=4)
        index = T.match_buffer(index_h, (samples, width), "int32", align=4)
        count = T.match_buffer(count_h, (samples,), "int32", align=4)
        w = T.match_buffer(w_h, (strips, width, VECTORS, LANES), "float32", align=4)
        bias = T.match_buffer(bias_h, (strips, VECTORS, LANES), "float32", align=4)
        y = T.match_buffer(y_h, (samples, strips, VECTORS, LANES), "float32", align=4)
        for t in T.parallel(strips):
            for n in T.serial(samples):
                sum = T.alloc_buffer((VECTORS, LANES), "float32")
                for s in T.unroll(VECTORS):
                    for v in T.vectorized(LANES):
                        sum[s, v] = bias[t, s, v]
                for j in T.serial(T.cast(count[n], "int64")):
                    later: T.let = T.min(j + AHEAD, T.cast(count[n], "int64") - 1)
                    coming: T.let = T.cast(index[n, later], "int64")
                    for s in T.unroll(VECTORS):
                        T.evaluate(fetch(T.address_of(w[t, coming, s, 0])))
                    c: T.let = T.cast(index[n, j], "int64")
                    for s in T.unroll(VECTORS):
                        for v in T.vectorized(LANES):
                            sum[s, v] = sum[s, v] + x[n, c] * w[t, c, s, v]
                for s in T.unroll(VECTORS):
                    for v in T.vectorized(LANES):
                        y[n, t, s, v] = sum[s, v]

    return skip_products
