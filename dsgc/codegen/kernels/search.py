"""Dimension-reduction search: project the input and round it to 8 bits.

Rows of projected pixels are kept as the target likes them for the score kernel: as bytes around
128 where it has 8-bit dot products (VNNI), else as whole float32 numbers. Both are exact, so the
scores are the same on every machine.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.tiles import VECTOR

LANES = 8  # of the peaks that are looked through at a time


@T.macro
def most_of_8(values, bad, out, at):  # type: ignore[no-untyped-def]  # a macro
    """``out[at]`` = the largest of eight; NaN if there is one in ``bad``."""
    for v in T.vectorized(4):
        values[v] = T.max(values[v], values[4 + v])
    for v in T.vectorized(4):
        bad[v] = bad[v] + bad[4 + v]
    out[at] = T.max(T.max(values[0], values[1]), T.max(values[2], values[3])) + (
        (bad[0] + bad[1]) + (bad[2] + bad[3])
    )


@T.macro
def most_of_16(values, bad, out, at):  # type: ignore[no-untyped-def]  # a macro
    """``out[at]`` = the largest of sixteen; NaN if there is one in ``bad``."""
    for v in T.vectorized(8):
        values[v] = T.max(values[v], values[8 + v])
    for v in T.vectorized(8):
        bad[v] = bad[v] + bad[8 + v]
    most_of_8(values, bad, out, at)


def project(b: int, sums: int) -> Any:
    """``z[p] = x[p] @ R`` for packed rows: only selected blocks are read. ``R`` is ``[blocks, b,
    depth / 16, 16]``; ``peak[p]`` is the largest magnitude of the row.

    A value that is read serves four vectors of ``z`` at once. Each has ``sums`` sums, so that not
    every product waits for the one before; a vector that is left over has four.
    """
    name = f"project_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        r_h: T.handle,
        z_h: T.handle,
        peak_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        blocks = T.int64()
        depth = T.int64()
        places = T.int64()
        x = T.match_buffer(x_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        r = T.match_buffer(r_h, (blocks, b, depth, VECTOR), "float32", align=4)
        z = T.match_buffer(z_h, (places, depth, VECTOR), "float32", align=4)
        peak = T.match_buffer(peak_h, (places,), "float32", align=4)
        for p in T.parallel(rows - 1):
            first: T.let = T.cast(rowptr[p], "int64")
            count: T.let = T.cast(rowptr[p + 1], "int64") - first
            most = T.alloc_buffer((VECTOR,), "float32")
            bad = T.alloc_buffer((VECTOR,), "float32")
            for v in T.vectorized(VECTOR):
                most[v] = T.float32(0)
            for v in T.vectorized(VECTOR):
                bad[v] = T.float32(0)
            for d in T.serial(depth // 4):
                project_row(x, index, r, z, most, bad, p, first, count, d * 4, b, 4, sums)
            for d in T.serial(depth % 4):
                at: T.let = depth // 4 * 4 + d
                project_row(x, index, r, z, most, bad, p, first, count, at, b, 1, 4)
            most_of_16(most, bad, peak, p)

    return kernel


@T.macro
def project_row(  # type: ignore[no-untyped-def]
    x, index, r, z, most, bad, p, first, count, at, b, vectors, sums
):
    """``vectors`` vectors of one row of ``z`` from ``at`` on (a macro)."""
    acc = T.alloc_buffer((sums * vectors, VECTOR), "float32")
    for u in T.unroll(sums * vectors):
        for v in T.vectorized(VECTOR):
            acc[u, v] = T.float32(0)
    for j in T.serial(count):
        c: T.let = T.cast(index[first + j], "int64")
        for s in T.unroll(b):
            for u in T.unroll(vectors):
                for v in T.vectorized(VECTOR):
                    acc[s % sums * vectors + u, v] = (
                        acc[s % sums * vectors + u, v] + x[first + j, s] * r[c, s, at + u, v]
                    )
    for u in T.unroll(vectors):
        for i in T.unroll(sums - 1):
            for v in T.vectorized(VECTOR):
                acc[u, v] = acc[u, v] + acc[(i + 1) * vectors + u, v]
        for v in T.vectorized(VECTOR):
            z[p, at + u, v] = acc[u, v]
        for v in T.vectorized(VECTOR):
            most[v] = T.max(most[v], T.fabs(acc[u, v]))
        for v in T.vectorized(VECTOR):
            bad[v] = bad[v] + acc[u, v] * T.float32(0)


def project_dense(members: int) -> Any:
    """The same for dense rows ``[P, channels]``, through their activation ``z = max(max(v, low) *
    scale + shift, high)``; ``R`` is ``[channels, depth / 16, 16]``.

    The activated values of ``members`` rows at a time stay in the first-level cache.
    """

    @T.prim_func(s_tir=True)
    def project_dense(
        x_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        r_h: T.handle,
        z_h: T.handle,
        peak_h: T.handle,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": "project_dense", "tirx.noalias": True})
        rows = T.int64()
        blocks = T.int64()
        depth = T.int64()
        x = T.match_buffer(x_h, (rows, blocks, VECTOR), "float32", align=4)
        scale = T.match_buffer(scale_h, (blocks, VECTOR), "float32", align=4)
        shift = T.match_buffer(shift_h, (blocks, VECTOR), "float32", align=4)
        r = T.match_buffer(r_h, (blocks * VECTOR, depth, VECTOR), "float32", align=4)
        z = T.match_buffer(z_h, (rows, depth, VECTOR), "float32", align=4)
        peak = T.match_buffer(peak_h, (rows,), "float32", align=4)
        for group in T.parallel((rows + (members - 1)) // members):
            active = T.alloc_buffer((members, blocks * VECTOR), "float32")
            most = T.alloc_buffer((members, VECTOR), "float32")
            bad = T.alloc_buffer((members, VECTOR), "float32")
            for u in T.serial(members):
                p: T.let = T.min(group * members + u, rows - 1)
                for c in T.serial(blocks):
                    t = T.alloc_buffer((VECTOR,), "float32")
                    for v in T.vectorized(VECTOR):
                        t[v] = (
                            T.Select(x[p, c, v] < low, low, x[p, c, v]) * scale[c, v] + shift[c, v]
                        )
                    for v in T.vectorized(VECTOR):
                        active[u, c * VECTOR + v] = T.Select(t[v] < high, high, t[v])
                for v in T.vectorized(VECTOR):
                    most[u, v] = T.float32(0)
                for v in T.vectorized(VECTOR):
                    bad[u, v] = T.float32(0)
            for d in T.serial(depth):
                acc = T.alloc_buffer((members, VECTOR), "float32")
                for u in T.unroll(members):
                    for v in T.vectorized(VECTOR):
                        acc[u, v] = T.float32(0)
                for k in T.serial(blocks * VECTOR):
                    for u in T.unroll(members):
                        for v in T.vectorized(VECTOR):
                            acc[u, v] = acc[u, v] + active[u, k] * r[k, d, v]
                for u in T.unroll(members):
                    p: T.let = T.min(group * members + u, rows - 1)
                    for v in T.vectorized(VECTOR):
                        z[p, d, v] = acc[u, v]
                    for v in T.vectorized(VECTOR):
                        most[u, v] = T.max(most[u, v], T.fabs(acc[u, v]))
                    for v in T.vectorized(VECTOR):
                        bad[u, v] = bad[u, v] + acc[u, v] * T.float32(0)
            for u in T.serial(members):
                top = T.alloc_buffer((VECTOR,), "float32")
                nan = T.alloc_buffer((VECTOR,), "float32")
                for v in T.vectorized(VECTOR):
                    top[v] = most[u, v]
                for v in T.vectorized(VECTOR):
                    nan[v] = bad[u, v]
                most_of_16(top, nan, peak, T.min(group * members + u, rows - 1))

    return project_dense


def round_rows(as_bytes: bool) -> Any:
    """Projected pixels on the 8-bit scale of their sample, whose ``peak`` is level 127.

    ``q`` has a row more, for pixels outside the image: level 0. ``step[n]`` is what a level of
    sample ``n`` is worth.
    """
    storage = "uint8" if as_bytes else "float32"
    name = "round_rows"

    @T.prim_func(s_tir=True)
    def kernel(z_h: T.handle, peak_h: T.handle, q_h: T.handle, step_h: T.handle):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        lanes = T.int64()
        places = T.int64()
        depth = T.int64()
        samples = T.int64()
        z = T.match_buffer(z_h, (rows, lanes), "float32", align=4)
        peak = T.match_buffer(peak_h, (rows,), "float32", align=4)
        q = T.match_buffer(q_h, (places, depth), storage, align=1 if as_bytes else 4)
        step = T.match_buffer(step_h, (samples,), "float32", align=4)
        for d in T.serial(depth):
            q[places - 1, d] = T.cast(128 if as_bytes else 0, storage)
        for n in T.parallel(samples):
            area: T.let = rows // samples
            most = T.alloc_buffer((LANES,), "float32")
            bad = T.alloc_buffer((LANES,), "float32")
            for v in T.vectorized(LANES):
                most[v] = T.float32(0)
            for v in T.vectorized(LANES):
                bad[v] = T.float32(0)
            for i in T.serial(area // LANES):
                for v in T.vectorized(LANES):
                    most[v] = T.max(most[v], peak[n * area + i * LANES + v])
                for v in T.vectorized(LANES):
                    bad[v] = bad[v] + peak[n * area + i * LANES + v] * T.float32(0)
            for i in T.serial(area % LANES):
                most[0] = T.max(most[0], peak[n * area + area - 1 - i])
                bad[0] = bad[0] + peak[n * area + area - 1 - i] * T.float32(0)
            most_of_8(most, bad, step, n)
            top: T.let = step[n]
            step[n] = top / T.float32(127)
            inverse: T.let = T.Select(top > T.float32(0), T.float32(127) / top, T.float32(0))
            for i in T.serial(area):
                for d in T.serial(depth // 4):
                    level = T.alloc_buffer((4,), "float32")
                    for v in T.vectorized(4):
                        level[v] = T.nearbyint(z[n * area + i, d * 4 + v] * inverse)
                    if as_bytes:
                        for v in T.vectorized(4):
                            q[n * area + i, d * 4 + v] = T.cast(
                                T.cast(level[v], "int32") + 128, "uint8"
                            )
                    else:
                        for v in T.vectorized(4):
                            q[n * area + i, d * 4 + v] = level[v]

    return kernel


def row_bytes(as_bytes: bool) -> Any:
    """Tells the caller how many bytes a value of a rounded row takes on this target."""
    size = 1 if as_bytes else 4

    @T.prim_func(s_tir=True)
    def row_bytes(out_h: T.handle):
        T.func_attr({"global_symbol": "row_bytes", "tirx.noalias": True})
        out = T.match_buffer(out_h, (1,), "int32", align=4)
        out[0] = size

    return row_bytes
