"""Linear layers of few rows that read a packed input: only pairs of blocks that a sample has.

A strip of a block's weights is copied side by side into the first-level cache, where rows of a
weight lie a power of two apart and would drive each other out. Then every sample that chose the
block meets the blocks of its own input that lie in the strip. ``edges[strip, sample]`` says where
those begin among the packed values.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.prefetch import SECOND_LEVEL, fetch
from dsgc.codegen.tiles import PAIR_STRIP

CHUNK = 64  # samples whose sums are kept while weights go by


@T.macro
def _copy_strip(near, w, n, k0, width, bo, bi, next_n, next_k):  # type: ignore[no-untyped-def]
    """``near[k * bo + s]``: the weights of output ``s`` of block ``n`` and the inputs of block
    ``k0 + k``. Those from ``next_n`` and ``next_k`` on, which come next, are asked for.
    """
    for s in T.serial(bo):
        for k in T.serial(width):
            T.evaluate(fetch(T.address_of(w[next_n, s, next_k + k, 0]), level=SECOND_LEVEL))
            for v in T.vectorized(bi):
                near[k * bo + s, v] = w[n, s, k0 + k, v]


@T.macro
def _spread(d, dy, slot, first, count, lanes):  # type: ignore[no-untyped-def]
    """``count`` gradients of a slot, from ``first`` on, each in every lane of a vector."""
    for s in T.unroll(count):
        for v in T.vectorized(lanes):
            d[s, v] = dy[slot, first + s]


def pair_products(bi: int, bo: int, outputs: int) -> Any:
    """``y[slot] = bias[n] + <x[sample], w[n]>`` for the samples that chose block ``n``.

    Sums are kept as vectors over the inputs of a block, and added up at the end.
    """
    name = f"pair_products_{bi}_{bo}"
    held = min(outputs, bo)
    depth = PAIR_STRIP // bi

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
        edges_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        y_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        values = T.int64()
        ends = T.int64()
        rows = T.int64()
        blocks_in = T.int64()
        blocks = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (values, bi), "float32", align=4)
        index = T.match_buffer(index_h, (values,), "int32", align=4)
        edges = T.match_buffer(edges_h, (ends, rows), "int32", align=4)
        w = T.match_buffer(w_h, (blocks, bo, blocks_in, bi), "float32", align=4)
        bias = T.match_buffer(bias_h, (blocks, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        y = T.match_buffer(y_h, (slots, bo), "float32", align=4)
        for n in T.parallel(blocks):
            first: T.let = T.cast(start[n], "int64")
            last: T.let = T.cast(start[n + 1], "int64")
            near = T.alloc_buffer((depth * bo, bi), "float32")
            sums = T.alloc_buffer((CHUNK * bo, bi), "float32")
            for chunk in T.serial((last - first + (CHUNK - 1)) // CHUNK):
                begin: T.let = first + chunk * CHUNK
                members: T.let = T.min(last - begin, T.int64(CHUNK))
                for i in T.serial(members * bo):
                    for v in T.vectorized(bi):
                        sums[i, v] = T.float32(0)
                for strip in T.serial(ends - 1):
                    k0: T.let = strip * depth
                    width: T.let = T.min(blocks_in - k0, T.int64(depth))
                    _copy_strip(near, w, n, k0, width, bo, bi, n, k0 + depth)
                    for i in T.serial(members):
                        q: T.let = T.cast(sample[begin + i], "int64")
                        for part in T.serial(bo // held):
                            acc = T.alloc_buffer((held, bi), "float32")
                            for s in T.unroll(held):
                                for v in T.vectorized(bi):
                                    acc[s, v] = sums[i * bo + part * held + s, v]
                            for e in T.serial(edges[strip, q], edges[strip + 1, q]):
                                at: T.let = (T.cast(index[e], "int64") - k0) * bo + part * held
                                for s in T.unroll(held):
                                    for v in T.vectorized(bi):
                                        acc[s, v] = acc[s, v] + x[e, v] * near[at + s, v]
                            for s in T.unroll(held):
                                for v in T.vectorized(bi):
                                    sums[i * bo + part * held + s, v] = acc[s, v]
                for i in T.serial(members):
                    out: T.let = T.cast(slot[begin + i], "int64")
                    for s in T.serial(bo):
                        total = T.alloc_scalar("float32")
                        total = bias[n, s]
                        half = T.alloc_buffer((bi // 2,), "float32")
                        for v in T.vectorized(bi // 2):
                            half[v] = sums[i * bo + s, v] + sums[i * bo + s, bi // 2 + v]
                        for v in T.unroll(bi // 2):
                            total = total + half[v]
                        y[out, s] = total

    return kernel


def pair_data_gradient(bi: int, bo: int, held: int) -> Any:
    """``dx[e] = sum over the sample's slots of dy[slot] @ w[n]``, of the blocks that it has.

    A task owns a strip of inputs. Values of a slot's gradient stay in registers, ``held`` at a
    time, each spread over a vector, while the sample's blocks go by.
    """
    name = f"pair_data_gradient_{bi}_{bo}"
    spread = min(held, bo)
    depth = PAIR_STRIP // bi

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        w_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        index_h: T.handle,
        edges_h: T.handle,
        dx_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        values = T.int64()
        ends = T.int64()
        rows = T.int64()
        blocks_in = T.int64()
        blocks = T.int64()
        starts = T.int64()
        slots = T.int64()
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        w = T.match_buffer(w_h, (blocks, bo, blocks_in, bi), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        index = T.match_buffer(index_h, (values,), "int32", align=4)
        edges = T.match_buffer(edges_h, (ends, rows), "int32", align=4)
        dx = T.match_buffer(dx_h, (values, bi), "float32", align=4)
        for strip in T.parallel(ends - 1):
            k0: T.let = strip * depth
            width: T.let = T.min(blocks_in - k0, T.int64(depth))
            near = T.alloc_buffer((depth * bo, bi), "float32")
            for q in T.serial(rows):
                for e in T.serial(edges[strip, q], edges[strip + 1, q]):
                    for v in T.vectorized(bi):
                        dx[e, v] = T.float32(0)
            for n in T.serial(blocks):
                first: T.let = T.cast(start[n], "int64")
                _copy_strip(near, w, n, k0, width, bo, bi, n + 1, k0)
                for i in T.serial(T.cast(start[n + 1], "int64") - first):
                    out: T.let = T.cast(slot[first + i], "int64")
                    q: T.let = T.cast(sample[first + i], "int64")
                    for part in T.serial(bo // spread):
                        d = T.alloc_buffer((spread, bi), "float32")
                        _spread(d, dy, out, part * spread, spread, bi)
                        for e in T.serial(edges[strip, q], edges[strip + 1, q]):
                            at: T.let = (T.cast(index[e], "int64") - k0) * bo + part * spread
                            acc = T.alloc_buffer((2, bi), "float32")
                            for v in T.vectorized(bi):
                                acc[0, v] = dx[e, v]
                            for v in T.vectorized(bi):
                                acc[1, v] = T.float32(0)
                            for s in T.unroll(spread):
                                for v in T.vectorized(bi):
                                    acc[s % 2, v] = acc[s % 2, v] + d[s, v] * near[at + s, v]
                            for v in T.vectorized(bi):
                                dx[e, v] = acc[0, v] + acc[1, v]

    return kernel


def pair_weight_gradient(bi: int, bo: int, held: int) -> Any:
    """``dw[n] = sum over the samples that chose n of outer(dy[slot], x[sample])``.

    A strip of the gradient is summed in the first-level cache and then written where it belongs.
    """
    name = f"pair_weight_gradient_{bi}_{bo}"
    spread = min(held, bo)
    depth = PAIR_STRIP // bi

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
        edges_h: T.handle,
        dy_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        dw_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        values = T.int64()
        ends = T.int64()
        rows = T.int64()
        blocks_in = T.int64()
        blocks = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (values, bi), "float32", align=4)
        index = T.match_buffer(index_h, (values,), "int32", align=4)
        edges = T.match_buffer(edges_h, (ends, rows), "int32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (blocks, bo, blocks_in, bi), "float32", align=4)
        for n in T.parallel(blocks):
            first: T.let = T.cast(start[n], "int64")
            near = T.alloc_buffer((depth * bo, bi), "float32")
            for strip in T.serial(ends - 1):
                k0: T.let = strip * depth
                width: T.let = T.min(blocks_in - k0, T.int64(depth))
                for k in T.serial(depth * bo):
                    for v in T.vectorized(bi):
                        near[k, v] = T.float32(0)
                for i in T.serial(T.cast(start[n + 1], "int64") - first):
                    out: T.let = T.cast(slot[first + i], "int64")
                    q: T.let = T.cast(sample[first + i], "int64")
                    for part in T.serial(bo // spread):
                        d = T.alloc_buffer((spread, bi), "float32")
                        _spread(d, dy, out, part * spread, spread, bi)
                        for e in T.serial(edges[strip, q], edges[strip + 1, q]):
                            at: T.let = (T.cast(index[e], "int64") - k0) * bo + part * spread
                            for s in T.unroll(spread):
                                for v in T.vectorized(bi):
                                    near[at + s, v] = near[at + s, v] + d[s, v] * x[e, v]
                for s in T.serial(bo):
                    for k in T.serial(width):
                        for v in T.vectorized(bi):
                            dw[n, s, k0 + k, v] = near[k * bo + s, v]

    return kernel
