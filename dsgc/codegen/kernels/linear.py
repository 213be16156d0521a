"""Linear layers of few rows, on weights as PyTorch stores them: ``w[outputs, inputs]``.

With few rows every weight is used a few times only, so laying weights out anew would cost more
than the products. The input comes as dense rows, whole vectors of ``LANES`` inputs, whose last row
is not read; outputs are whole blocks of ``bo``.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.prefetch import fetch
from dsgc.codegen.kernels.register_tile import add_to_row
from dsgc.codegen.tiles import ROW_LANES as LANES
from dsgc.codegen.tiles import ROW_STRIP

MEMBERS = 3  # samples, or vectors of inputs, in a register tile beside its outputs
GROUPS = 32  # such tiles of samples whose sums are kept while weights go by
STRIP = 32  # vectors of inputs whose weights stay in the first-level cache


def row_products(bo: int, outputs: int) -> Any:
    """``y[slot] = bias[n] + <x[sample], w[n]>`` for the samples that chose block ``n``.

    Sums are kept as vectors over inputs, ``outputs`` of them for each of three samples, and added
    up at the end. A strip of the weights serves all samples of a chunk before the next is read, and
    a strip of the samples all outputs of the block.
    """
    name = f"row_products_{bo}"
    held = min(outputs, bo)
    parts = bo // held

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        y_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        vectors = T.int64()
        blocks = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (rows, vectors, LANES), "float32", align=4)
        w = T.match_buffer(w_h, (blocks, bo, vectors, LANES), "float32", align=4)
        bias = T.match_buffer(bias_h, (blocks, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        y = T.match_buffer(y_h, (slots, bo), "float32", align=4)
        for n in T.parallel(blocks):
            first: T.let = T.cast(start[n], "int64")
            last: T.let = T.cast(start[n + 1], "int64")
            sums = T.alloc_buffer((parts, GROUPS, MEMBERS, held, LANES), "float32")
            for chunk in T.serial((last - first + (GROUPS * MEMBERS - 1)) // (GROUPS * MEMBERS)):
                begin: T.let = first + chunk * (GROUPS * MEMBERS)
                groups: T.let = T.min((last - begin + (MEMBERS - 1)) // MEMBERS, T.int64(GROUPS))
                for part in T.serial(parts):
                    for group in T.serial(groups):
                        for u in T.unroll(MEMBERS):
                            for s in T.unroll(held):
                                for v in T.vectorized(LANES):
                                    sums[part, group, u, s, v] = T.float32(0)
                for strip in T.serial((vectors + (STRIP - 1)) // STRIP):
                    depth: T.let = T.min(vectors - strip * STRIP, T.int64(STRIP))
                    for task in T.serial(parts * groups):
                        part: T.let = task // groups
                        group: T.let = task % groups
                        row = T.alloc_buffer((MEMBERS,), "int64")
                        acc0 = T.alloc_buffer((held, LANES), "float32")
                        acc1 = T.alloc_buffer((held, LANES), "float32")
                        acc2 = T.alloc_buffer((held, LANES), "float32")
                        for u in T.unroll(MEMBERS):
                            at: T.let = T.min(begin + group * MEMBERS + u, last - 1)
                            row[u] = T.cast(sample[at], "int64")
                        for s in T.unroll(held):
                            for v in T.vectorized(LANES):
                                acc0[s, v] = sums[part, group, 0, s, v]
                            for v in T.vectorized(LANES):
                                acc1[s, v] = sums[part, group, 1, s, v]
                            for v in T.vectorized(LANES):
                                acc2[s, v] = sums[part, group, 2, s, v]
                        for i in T.serial(depth):
                            k: T.let = strip * STRIP + i
                            for s in T.unroll(held):
                                o: T.let = part * held + s
                                for v in T.vectorized(LANES):
                                    acc0[s, v] = acc0[s, v] + x[row[0], k, v] * w[n, o, k, v]
                                for v in T.vectorized(LANES):
                                    acc1[s, v] = acc1[s, v] + x[row[1], k, v] * w[n, o, k, v]
                                for v in T.vectorized(LANES):
                                    acc2[s, v] = acc2[s, v] + x[row[2], k, v] * w[n, o, k, v]
                        for s in T.unroll(held):
                            for v in T.vectorized(LANES):
                                sums[part, group, 0, s, v] = acc0[s, v]
                            for v in T.vectorized(LANES):
                                sums[part, group, 1, s, v] = acc1[s, v]
                            for v in T.vectorized(LANES):
                                sums[part, group, 2, s, v] = acc2[s, v]
                for part in T.serial(parts):
                    for i in T.serial(T.min(last - begin, T.int64(GROUPS * MEMBERS))):
                        out: T.let = T.cast(slot[begin + i], "int64")
                        for s in T.unroll(held):
                            total = T.alloc_scalar("float32")
                            total = bias[n, part * held + s]
                            half = T.alloc_buffer((LANES // 2,), "float32")
                            for v in T.vectorized(LANES // 2):
                                half[v] = (
                                    sums[part, i // MEMBERS, i % MEMBERS, s, v]
                                    + sums[part, i // MEMBERS, i % MEMBERS, s, LANES // 2 + v]
                                )
                            for v in T.unroll(LANES // 2):
                                total = total + half[v]
                            y[out, part * held + s] = total

    return kernel


def row_data_gradient(bo: int, held: int) -> Any:
    """``dx[sample] = sum over its slots of dy[slot] @ w[n]``: every input of every sample.

    A task owns a strip of inputs; the weights of a block at one vector of it stay in registers,
    ``held`` outputs at a time, while the samples that chose the block stream by.
    """
    name = f"row_data_gradient_{bo}"
    depth = min(held, bo)

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        w_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        dx_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        vectors = T.int64()
        blocks = T.int64()
        starts = T.int64()
        slots = T.int64()
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        w = T.match_buffer(w_h, (blocks, bo, vectors, LANES), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        dx = T.match_buffer(dx_h, (rows, vectors, LANES), "float32", align=4)
        for task in T.parallel((vectors + (ROW_STRIP - 1)) // ROW_STRIP):
            k0: T.let = task * ROW_STRIP
            width: T.let = T.min(vectors - k0, T.int64(ROW_STRIP))
            # Rows of dx may lie a power of two apart, which few sets of a cache would have to hold.
            total = T.alloc_buffer((ROW_STRIP * rows, LANES), "float32")
            for i in T.serial(width * rows):
                for v in T.vectorized(LANES):
                    total[i, v] = T.float32(0)
            for n in T.serial(blocks):
                first: T.let = T.cast(start[n], "int64")
                members: T.let = T.cast(start[n + 1], "int64") - first
                for k in T.serial(width):
                    for part in T.serial(bo // depth):
                        kept = T.alloc_buffer((depth, LANES), "float32")
                        for s in T.unroll(depth):
                            for v in T.vectorized(LANES):
                                kept[s, v] = w[n, part * depth + s, k0 + k, v]
                            T.evaluate(fetch(T.address_of(w[n + 1, part * depth + s, k0 + k, 0])))
                        for i in T.serial(members):
                            at: T.let = T.cast(slot[first + i], "int64")
                            q: T.let = k * rows + T.cast(sample[first + i], "int64")
                            add_to_row(total, q, dy, at, part * depth, kept, depth, LANES)
            for i in T.serial(rows):
                for k in T.serial(width):
                    for v in T.vectorized(LANES):
                        dx[i, k0 + k, v] = total[k * rows + i, v]

    return kernel


def row_weight_gradient(bo: int, outputs: int) -> Any:
    """``dw[n] = sum over the samples that chose n of outer(dy[slot], x[sample])``.

    A task owns a block of outputs and a strip of inputs, all blocks of a strip one after the other,
    so that the inputs stay in the cache. ``outputs`` by three vectors of the gradient are
    accumulated in registers.
    """
    name = f"row_weight_gradient_{bo}"
    held = min(outputs, bo)
    strip = ROW_STRIP * MEMBERS

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        dy_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        dw_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        vectors = T.int64()
        blocks = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (rows, vectors, LANES), "float32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (blocks, bo, vectors, LANES), "float32", align=4)
        for task in T.parallel((vectors + (strip - 1)) // strip * blocks):
            k0: T.let = task // blocks * strip
            width: T.let = T.min(vectors - k0, T.int64(strip))
            n: T.let = task % blocks
            first: T.let = T.cast(start[n], "int64")
            members: T.let = T.cast(start[n + 1], "int64") - first
            for part in T.serial(bo // held):
                for group in T.serial((width + (MEMBERS - 1)) // MEMBERS):
                    # The last vectors may come twice; both times they get the same gradient.
                    last: T.let = vectors - 1
                    k: T.let = k0 + group * MEMBERS
                    acc0 = T.alloc_buffer((held, LANES), "float32")
                    acc1 = T.alloc_buffer((held, LANES), "float32")
                    acc2 = T.alloc_buffer((held, LANES), "float32")
                    for s in T.unroll(held):
                        for v in T.vectorized(LANES):
                            acc0[s, v] = T.float32(0)
                        for v in T.vectorized(LANES):
                            acc1[s, v] = T.float32(0)
                        for v in T.vectorized(LANES):
                            acc2[s, v] = T.float32(0)
                    for i in T.serial(members):
                        at: T.let = T.cast(slot[first + i], "int64")
                        q: T.let = T.cast(sample[first + i], "int64")
                        for s in T.unroll(held):
                            d: T.let = dy[at, part * held + s]
                            for v in T.vectorized(LANES):
                                acc0[s, v] = acc0[s, v] + d * x[q, k, v]
                            for v in T.vectorized(LANES):
                                acc1[s, v] = acc1[s, v] + d * x[q, T.min(k + 1, last), v]
                            for v in T.vectorized(LANES):
                                acc2[s, v] = acc2[s, v] + d * x[q, T.min(k + 2, last), v]
                    for s in T.unroll(held):
                        for v in T.vectorized(LANES):
                            dw[n, part * held + s, k, v] = acc0[s, v]
                        for v in T.vectorized(LANES):
                            dw[n, part * held + s, T.min(k + 1, last), v] = acc1[s, v]
                        for v in T.vectorized(LANES):
                            dw[n, part * held + s, T.min(k + 2, last), v] = acc2[s, v]

    return kernel
