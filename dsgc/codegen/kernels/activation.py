"""Deferred activations, and the way between packed and dense, for blocks of ``b`` lanes.

Every activation is ``z = max(max(v, low) * scale + shift, high)`` where ``low`` and ``high`` are 0
(a ReLU before or after the affine part) or minus infinity (none). Comparisons are written so that
NaN passes through.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


@T.macro
def scale_and_shift(z, v, j, c, scale, shift, low, b):  # type: ignore[no-untyped-def]
    """``z``: an activation of ``v[j]``, of block ``c``, but for its last maximum."""
    for u in T.vectorized(b):
        z[u] = T.Select(v[j, u] < low, low, v[j, u]) * scale[c, u] + shift[c, u]


def activate(b: int) -> Any:
    """``y[j] = z(v[j])``."""
    name = f"activate_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        v_h: T.handle,
        index_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        y_h: T.handle,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        blocks = T.int64()
        v = T.match_buffer(v_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        scale = T.match_buffer(scale_h, (blocks, b), "float32", align=4)
        shift = T.match_buffer(shift_h, (blocks, b), "float32", align=4)
        y = T.match_buffer(y_h, (slots, b), "float32", align=4)
        for j in T.parallel(slots):
            c: T.let = T.cast(index[j], "int64")
            z = T.alloc_buffer((b,), "float32")
            scale_and_shift(z, v, j, c, scale, shift, low, b)
            for u in T.vectorized(b):
                y[j, u] = T.Select(z[u] < high, high, z[u])

    return kernel


def activate_backward(b: int) -> Any:
    """``dv``, ``dscale`` and ``dshift``, which may be empty. ``dv`` may be ``dy``; ``partial`` is
    room for the sums of a task.
    """
    name = f"activate_backward_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        v_h: T.handle,
        index_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        dv_h: T.handle,
        partial_h: T.handle,
        dscale_h: T.handle,
        dshift_h: T.handle,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": name})
        slots = T.int64()
        blocks = T.int64()
        tasks = T.int64()
        channels = T.int64()
        dy = T.match_buffer(dy_h, (slots, b), "float32", align=4)
        v = T.match_buffer(v_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        scale = T.match_buffer(scale_h, (blocks, b), "float32", align=4)
        shift = T.match_buffer(shift_h, (blocks, b), "float32", align=4)
        dv = T.match_buffer(dv_h, (slots, b), "float32", align=4)
        partial = T.match_buffer(partial_h, (tasks, 2, blocks, b), "float32", align=4)
        dscale = T.match_buffer(dscale_h, (channels,), "float32", align=4)
        dshift = T.match_buffer(dshift_h, (channels,), "float32", align=4)
        for task in T.parallel(tasks):
            for c in T.serial(blocks):
                for u in T.vectorized(b):
                    partial[task, 0, c, u] = T.float32(0)
                for u in T.vectorized(b):
                    partial[task, 1, c, u] = T.float32(0)
            first: T.let = task * slots // tasks
            for i in T.serial((task + 1) * slots // tasks - first):
                j: T.let = first + i
                c: T.let = T.cast(index[j], "int64")
                t = T.alloc_buffer((b,), "float32")
                g = T.alloc_buffer((b,), "float32")
                for u in T.vectorized(b):
                    t[u] = T.Select(v[j, u] < low, low, v[j, u])
                for u in T.vectorized(b):
                    g[u] = T.Select(t[u] * scale[c, u] + shift[c, u] > high, dy[j, u], T.float32(0))
                for u in T.vectorized(b):
                    dv[j, u] = T.Select(v[j, u] > low, g[u] * scale[c, u], T.float32(0))
                for u in T.vectorized(b):
                    partial[task, 0, c, u] = partial[task, 0, c, u] + g[u] * t[u]
                for u in T.vectorized(b):
                    partial[task, 1, c, u] = partial[task, 1, c, u] + g[u]
        for c in T.serial(channels):
            dscale[c] = T.float32(0)
            dshift[c] = T.float32(0)
            for i in T.serial(tasks):
                dscale[c] = dscale[c] + partial[i, 0, c // b, c % b]
                dshift[c] = dshift[c] + partial[i, 1, c // b, c % b]

    return kernel


def pack(b: int) -> Any:
    """``values[j] = x[p, block]``: the selected blocks of dense rows (whole blocks: ``width =
    blocks * b``).
    """
    name = f"pack_{b}"

    @T.prim_func(s_tir=True)
    def kernel(x_h: T.handle, index_h: T.handle, rowptr_h: T.handle, values_h: T.handle):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        positions = T.int64()
        blocks = T.int64()
        slots = T.int64()
        rows = T.int64()
        x = T.match_buffer(x_h, (positions, blocks, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        values = T.match_buffer(values_h, (slots, b), "float32", align=4)
        for p in T.parallel(rows - 1):
            first: T.let = T.cast(rowptr[p], "int64")
            for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                c: T.let = T.cast(index[first + j], "int64")
                for u in T.vectorized(b):
                    values[first + j, u] = x[p, c, u]

    return kernel


def unpack(b: int) -> Any:
    """Dense rows out of packed ones, activated on the way; rows beyond the last position and what
    nobody chose are zero.
    """
    name = f"unpack_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        v_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        x_h: T.handle,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        blocks = T.int64()
        places = T.int64()
        width = T.int64()
        v = T.match_buffer(v_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        scale = T.match_buffer(scale_h, (blocks, b), "float32", align=4)
        shift = T.match_buffer(shift_h, (blocks, b), "float32", align=4)
        x = T.match_buffer(x_h, (places, width), "float32", align=4)
        for p in T.parallel(places):
            for c in T.serial(width):
                x[p, c] = T.float32(0)
            if p < rows - 1:
                first: T.let = T.cast(rowptr[p], "int64")
                for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                    c: T.let = T.cast(index[first + j], "int64")
                    z = T.alloc_buffer((b,), "float32")
                    scale_and_shift(z, v, first + j, c, scale, shift, low, b)
                    for u in T.vectorized(b):
                        x[p, c * b + u] = T.Select(z[u] < high, high, z[u])

    return kernel


def unpack_groups(b: int) -> Any:
    """:func:`unpack` into groups of channels, ``x[group, row, width]``, for kernels that go through
    many rows of one group at a time.
    """
    name = f"unpack_groups_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        v_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        x_h: T.handle,
        low: T.float32,
        high: T.float32,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        blocks = T.int64()
        groups = T.int64()
        places = T.int64()
        width = T.int64()
        v = T.match_buffer(v_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        scale = T.match_buffer(scale_h, (blocks, b), "float32", align=4)
        shift = T.match_buffer(shift_h, (blocks, b), "float32", align=4)
        x = T.match_buffer(x_h, (groups, places, width), "float32", align=4)
        for p in T.parallel(places):
            for g in T.serial(groups):
                for c in T.serial(width):
                    x[g, p, c] = T.float32(0)
            if p < rows - 1:
                first: T.let = T.cast(rowptr[p], "int64")
                for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                    c: T.let = T.cast(index[first + j], "int64")
                    z = T.alloc_buffer((b,), "float32")
                    scale_and_shift(z, v, first + j, c, scale, shift, low, b)
                    for u in T.vectorized(b):
                        x[c * b // width, p, c * b % width + u] = T.Select(z[u] < high, high, z[u])

    return kernel
