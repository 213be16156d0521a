"""Pooling where single neurons are selected: windows are merged by channel number, not by order.

The meaning is that of :mod:`dsgc.codegen.kernels.pooling`, whose kernels merge sorted rows; with
single neurons the rows are long and a comparison a step is dear, so a window is scattered over all
``channels`` of a position instead.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.pooling import FROM_ZERO


def count_neurons() -> Any:
    """``counts[p]``: how many channels the window of output position ``p`` holds."""

    @T.prim_func(s_tir=True)
    def count_neurons(
        index_h: T.handle,
        rowptr_h: T.handle,
        counts_h: T.handle,
        channels: T.int64,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": "count_neurons", "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        positions = T.int64()
        taps = T.int64()
        pixels = T.int64()
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        counts = T.match_buffer(counts_h, (positions,), "int32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(positions):
            found = T.alloc_scalar("int32")
            present = T.alloc_buffer((channels,), "int8")
            for c in T.serial(channels):
                present[c] = T.int8(0)
            for t in T.serial(taps):
                near: T.let = T.cast(table[t, p % pixels], "int64")
                if near >= 0:
                    first: T.let = T.cast(rowptr[p // pixels * area + near], "int64")
                    last: T.let = T.cast(rowptr[p // pixels * area + near + 1], "int64")
                    for j in T.serial(last - first):
                        present[T.cast(index[first + j], "int64")] = T.int8(1)
            found = 0
            for c in T.serial(channels):
                found = found + T.cast(present[c], "int32")
            counts[p] = found

    return count_neurons


def pool_neurons(mode: str) -> Any:
    """Fills ``index`` and ``values`` of the union; for ``mode="max"`` also the winning tap.

    ``run[c]`` counts the leading positions of the window that have channel ``c``: where it stops is
    the first gap, which counts as zero.
    """
    name = f"{mode}_pool_1"
    largest = mode == "max"

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        out_index_h: T.handle,
        out_rowptr_h: T.handle,
        y_h: T.handle,
        argmax_h: T.handle,
        weight_h: T.handle,
        channels: T.int64,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        out_slots = T.int64()
        out_rows = T.int64()
        arg_slots = T.int64()
        taps = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (slots,), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        out_index = T.match_buffer(out_index_h, (out_slots,), "int32", align=4)
        out_rowptr = T.match_buffer(out_rowptr_h, (out_rows,), "int32", align=4)
        y = T.match_buffer(y_h, (out_slots,), "float32", align=4)
        argmax = T.match_buffer(argmax_h, (arg_slots,), "uint8", align=1)
        weight = T.match_buffer(weight_h, (pixels,), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(out_rows - 1):
            valid = T.alloc_scalar("int32")
            found = T.alloc_scalar("int64")
            best = T.alloc_buffer((channels,), "float32")
            winner = T.alloc_buffer((channels,), "int32")
            run = T.alloc_buffer((channels,), "int32")
            present = T.alloc_buffer((channels,), "int8")
            chosen = T.alloc_buffer((channels + 1,), "int32")
            place = T.alloc_buffer((taps,), "int32")
            for c in T.serial(channels):
                best[c] = T.float32(float("-inf")) if largest else T.float32(0)
            for c in T.serial(channels):
                winner[c] = T.int32(FROM_ZERO)
            for c in T.serial(channels):
                run[c] = 0
            for c in T.serial(channels):
                present[c] = T.int8(0)
            valid = 0
            for t in T.serial(taps):
                near: T.let = T.cast(table[t, p % pixels], "int64")
                if near >= 0:
                    first: T.let = T.cast(rowptr[p // pixels * area + near], "int64")
                    last: T.let = T.cast(rowptr[p // pixels * area + near + 1], "int64")
                    if largest:
                        place[valid] = T.cast(t, "int32")
                    for j in T.serial(last - first):
                        c: T.let = T.cast(index[first + j], "int64")
                        z: T.let = x[first + j]
                        present[c] = T.int8(1)
                        if largest:
                            run[c] = run[c] + T.cast(run[c] == valid, "int32")
                            better: T.let = (z > best[c]) | T.isnan(z)
                            winner[c] = T.Select(better, T.cast(t, "int32"), winner[c])
                            best[c] = T.Select(better, z, best[c])
                        else:
                            best[c] = best[c] + z
                    if largest:
                        valid = valid + 1
            found = T.int64(0)
            for c in T.serial(channels):
                chosen[found] = T.cast(c, "int32")
                found = found + T.cast(present[c], "int64")
            begin: T.let = T.cast(out_rowptr[p], "int64")
            for j in T.serial(T.cast(out_rowptr[p + 1], "int64") - begin):
                c: T.let = T.cast(chosen[j], "int64")
                out_index[begin + j] = chosen[j]
                if largest:
                    gap: T.let = run[c] < valid
                    at: T.let = place[T.min(T.cast(run[c], "int64"), taps - 1)]
                    zero: T.let = gap & (
                        (best[c] < T.float32(0)) | ((best[c] == T.float32(0)) & (at < winner[c]))
                    )
                    argmax[begin + j] = T.cast(
                        T.Select(zero, T.int32(FROM_ZERO), winner[c]), "uint8"
                    )
                    y[begin + j] = T.Select(zero, T.float32(0), best[c])
                else:
                    y[begin + j] = best[c] * weight[p % pixels]

    return kernel


def pool_neurons_backward(mode: str) -> Any:
    """``dx[slot]``: every input slot gathers from the windows that hold it.

    ``table`` and ``weight`` as in :func:`dsgc.codegen.kernels.pooling.pool_backward`.
    """
    name = f"{mode}_pool_backward_1"
    largest = mode == "max"

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        out_index_h: T.handle,
        out_rowptr_h: T.handle,
        argmax_h: T.handle,
        dx_h: T.handle,
        weight_h: T.handle,
        channels: T.int64,
        table_h: T.handle,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        out_slots = T.int64()
        out_rows = T.int64()
        arg_slots = T.int64()
        taps = T.int64()
        pixels = T.int64()
        area = T.int64()
        dy = T.match_buffer(dy_h, (out_slots,), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        out_index = T.match_buffer(out_index_h, (out_slots,), "int32", align=4)
        out_rowptr = T.match_buffer(out_rowptr_h, (out_rows,), "int32", align=4)
        argmax = T.match_buffer(argmax_h, (arg_slots,), "uint8", align=1)
        dx = T.match_buffer(dx_h, (slots,), "float32", align=4)
        weight = T.match_buffer(weight_h, (area,), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for q in T.parallel(rows - 1):
            window = T.alloc_buffer((channels,), "float32")
            begin: T.let = T.cast(rowptr[q], "int64")
            members: T.let = T.cast(rowptr[q + 1], "int64") - begin
            for j in T.serial(members):
                dx[begin + j] = T.float32(0)
            for t in T.serial(taps):
                near: T.let = T.cast(table[t, q % pixels], "int64")
                if near >= 0:
                    # The window holds every channel of q, so nothing older is read.
                    first: T.let = T.cast(out_rowptr[q // pixels * area + near], "int64")
                    last: T.let = T.cast(out_rowptr[q // pixels * area + near + 1], "int64")
                    for j in T.serial(last - first):
                        window[T.cast(out_index[first + j], "int64")] = (
                            T.Select(
                                T.cast(argmax[first + j], "int32") == T.cast(t, "int32"),
                                dy[first + j],
                                T.float32(0),
                            )
                            if largest
                            else dy[first + j] * weight[near]
                        )
                    for j in T.serial(members):
                        dx[begin + j] = dx[begin + j] + window[T.cast(index[begin + j], "int64")]

    return kernel
