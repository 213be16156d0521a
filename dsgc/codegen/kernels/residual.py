"""Residual streams: a dense map and a packed branch with blocks of ``b`` lanes."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.activation import scale_and_shift


def residual_add(b: int) -> Any:
    """``y = max(x + z(v), floor)`` with ``z`` as in :mod:`dsgc.codegen.kernels.activation`, zero
    where nobody chose; rows beyond the last position are zero.
    """
    name = f"residual_add_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        v_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        x_h: T.handle,
        y_h: T.handle,
        low: T.float32,
        high: T.float32,
        floor: T.float32,
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
        y = T.match_buffer(y_h, (places, width), "float32", align=4)
        for p in T.parallel(places):
            if p < rows - 1:
                for c in T.serial(width):
                    y[p, c] = T.Select(x[p, c] < floor, floor, x[p, c])
                first: T.let = T.cast(rowptr[p], "int64")
                for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                    c: T.let = T.cast(index[first + j], "int64")
                    z = T.alloc_buffer((b,), "float32")
                    scale_and_shift(z, v, first + j, c, scale, shift, low, b)
                    for u in T.vectorized(b):
                        z[u] = T.Select(z[u] < high, high, z[u]) + x[p, c * b + u]
                    for u in T.vectorized(b):
                        y[p, c * b + u] = T.Select(z[u] < floor, floor, z[u])
            else:
                for c in T.serial(width):
                    y[p, c] = T.float32(0)

    return kernel


def residual_add_backward(b: int) -> Any:
    """``dx``, the gradient where ``y`` is not clamped, and the selected blocks of it."""
    name = f"residual_add_backward_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        y_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        dx_h: T.handle,
        values_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        positions = T.int64()
        width = T.int64()
        slots = T.int64()
        rows = T.int64()
        dy = T.match_buffer(dy_h, (positions, width), "float32", align=4)
        y = T.match_buffer(y_h, (positions, width), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        dx = T.match_buffer(dx_h, (positions, width), "float32", align=4)
        values = T.match_buffer(values_h, (slots, b), "float32", align=4)
        for p in T.parallel(positions):
            for c in T.serial(width):
                dx[p, c] = T.Select(y[p, c] <= T.float32(0), T.float32(0), dy[p, c])
            first: T.let = T.cast(rowptr[p], "int64")
            for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                c: T.let = T.cast(index[first + j], "int64")
                for u in T.vectorized(b):
                    values[first + j, u] = dx[p, c * b + u]

    return kernel
