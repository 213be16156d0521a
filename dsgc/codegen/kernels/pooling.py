"""Max and average pooling of packed maps: the output keeps a block that is selected in its window.

The blocks of a position are sorted, so the union over a window is a merge of its rows: ``head`` and
``tail`` bound what is left of each. A window has at most 254 taps, so either fits in 1 KiB of
stack. ``table[tap, pixel]`` is the source pixel of the same sample, or -1 for padding.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.larger import keep_larger

TAPS = 254
BITS = 64
FROM_ZERO = 255
END = 2147483647


def count_union() -> Any:
    """``counts[p]``: how many blocks the window of output position ``p`` holds.

    Where they are numbered below 64, a bit each; else by the merge.
    """

    @T.prim_func(s_tir=True)
    def count_union(
        index_h: T.handle, rowptr_h: T.handle, counts_h: T.handle, table_h: T.handle, area: T.int64
    ):
        T.func_attr({"global_symbol": "count_union", "tirx.noalias": True})
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
            head = T.alloc_buffer((TAPS,), "int32")
            tail = T.alloc_buffer((TAPS,), "int32")
            found = T.alloc_scalar("int32")
            current = T.alloc_scalar("int32")
            highest = T.alloc_scalar("int32")
            bits = T.alloc_scalar("int64")
            highest = 0
            bits = T.int64(0)
            for t in T.serial(taps):
                near: T.let = T.cast(table[t, p % pixels], "int64")
                q: T.let = p // pixels * area + T.max(near, T.int64(0))
                head[t] = rowptr[q]
                tail[t] = T.Select(near >= 0, rowptr[q + 1], rowptr[q])
                for s in T.serial(tail[t] - head[t]):
                    block: T.let = index[T.cast(head[t] + s, "int64")]
                    highest = T.max(highest, block)
                    bits = bits | (T.int64(1) << T.cast(block & (BITS - 1), "int64"))
            # Beyond the bits the merge counts from nothing, else it is over before it begins.
            found = T.if_then_else(highest < BITS, T.cast(T.popcount(bits), "int32"), 0)
            current = T.if_then_else(highest < BITS, T.int32(END), 0)
            while current != T.int32(END):
                current = T.int32(END)
                for t in T.serial(taps):
                    if head[t] < tail[t]:
                        current = T.min(current, index[T.cast(head[t], "int64")])
                if current != T.int32(END):
                    found = found + 1
                    for t in T.serial(taps):
                        if head[t] < tail[t]:
                            if index[T.cast(head[t], "int64")] == current:
                                head[t] = head[t] + 1
            counts[p] = found

    return count_union


def pool(b: int, mode: str) -> Any:
    """Fills ``index`` and ``values`` of the union; for ``mode="max"`` also the winning tap.

    A position of the image that did not select the block counts as zero, also for the maximum;
    padding does not. ``gap`` is the first such tap: of equal values the first one wins. For
    averages ``weight[pixel]`` is one over the number of positions that count.
    """
    name = f"{mode}_pool_{b}"
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
        x = T.match_buffer(x_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        out_index = T.match_buffer(out_index_h, (out_slots,), "int32", align=4)
        out_rowptr = T.match_buffer(out_rowptr_h, (out_rows,), "int32", align=4)
        y = T.match_buffer(y_h, (out_slots, b), "float32", align=4)
        argmax = T.match_buffer(argmax_h, (arg_slots, b), "uint8", align=1)
        weight = T.match_buffer(weight_h, (pixels,), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(out_rows - 1):
            head = T.alloc_buffer((TAPS,), "int32")
            tail = T.alloc_buffer((TAPS,), "int32")
            current = T.alloc_scalar("int32")
            gap = T.alloc_scalar("int32")
            best = T.alloc_buffer((b,), "float32")
            value = T.alloc_buffer((b,), "float32")
            winner = T.alloc_buffer((b,), "int32")
            for t in T.serial(taps):
                near: T.let = T.cast(table[t, p % pixels], "int64")
                q: T.let = p // pixels * area + T.max(near, T.int64(0))
                head[t] = rowptr[q]
                tail[t] = T.Select(near >= 0, rowptr[q + 1], rowptr[q])
            first: T.let = T.cast(out_rowptr[p], "int64")
            for j in T.serial(T.cast(out_rowptr[p + 1], "int64") - first):
                current = T.int32(END)
                gap = T.int32(END)
                for t in T.serial(taps):
                    if head[t] < tail[t]:
                        current = T.min(current, index[T.cast(head[t], "int64")])
                for u in T.vectorized(b):
                    best[u] = T.float32(float("-inf")) if largest else T.float32(0)
                for u in T.vectorized(b):
                    winner[u] = T.int32(FROM_ZERO)
                for t in T.serial(taps):
                    tap: T.let = T.cast(t, "int32")
                    here: T.let = T.if_then_else(
                        head[t] < tail[t], index[T.cast(head[t], "int64")], T.int32(END)
                    )
                    if here == current:
                        s: T.let = T.cast(head[t], "int64")
                        if largest:
                            for u in T.vectorized(b):
                                value[u] = x[s, u]
                            keep_larger(best, winner, value, tap, b)
                        else:
                            for u in T.vectorized(b):
                                best[u] = best[u] + x[s, u]
                        head[t] = head[t] + 1
                    else:
                        if table[t, p % pixels] >= 0:
                            gap = T.min(gap, tap)
                out_index[first + j] = current
                if largest:
                    if gap != T.int32(END):
                        for u in T.vectorized(b):
                            winner[u] = T.Select(
                                (best[u] < T.float32(0))
                                | ((best[u] == T.float32(0)) & (gap < winner[u])),
                                T.int32(FROM_ZERO),
                                winner[u],
                            )
                        for u in T.vectorized(b):
                            best[u] = T.Select(best[u] < T.float32(0), T.float32(0), best[u])
                    for u in T.vectorized(b):
                        argmax[first + j, u] = T.cast(winner[u], "uint8")
                    for u in T.vectorized(b):
                        y[first + j, u] = best[u]
                else:
                    for u in T.vectorized(b):
                        y[first + j, u] = best[u] * weight[p % pixels]

    return kernel


def pool_backward(b: int, mode: str) -> Any:
    """``dx[slot]``: every input slot gathers from the windows that hold it.

    Here ``table[tap, pixel]`` is the output pixel whose window has the input pixel at that tap, and
    ``weight`` belongs to output pixels.
    """
    name = f"{mode}_pool_backward_{b}"
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
        dy = T.match_buffer(dy_h, (out_slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        out_index = T.match_buffer(out_index_h, (out_slots,), "int32", align=4)
        out_rowptr = T.match_buffer(out_rowptr_h, (out_rows,), "int32", align=4)
        argmax = T.match_buffer(argmax_h, (arg_slots, b), "uint8", align=1)
        dx = T.match_buffer(dx_h, (slots, b), "float32", align=4)
        weight = T.match_buffer(weight_h, (area,), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for q in T.parallel(rows - 1):
            cursor = T.alloc_scalar("int64")
            begin: T.let = T.cast(rowptr[q], "int64")
            for j in T.serial(T.cast(rowptr[q + 1], "int64") - begin):
                for u in T.vectorized(b):
                    dx[begin + j, u] = T.float32(0)
            for t in T.serial(taps):
                near: T.let = T.cast(table[t, q % pixels], "int64")
                if near >= 0:
                    cursor = T.cast(out_rowptr[q // pixels * area + near], "int64")
                    for j in T.serial(T.cast(rowptr[q + 1], "int64") - begin):
                        while out_index[cursor] != index[begin + j]:
                            cursor = cursor + 1
                        for u in T.vectorized(b):
                            dx[begin + j, u] = dx[begin + j, u] + (
                                T.Select(
                                    T.cast(argmax[cursor, u], "int32") == T.cast(t, "int32"),
                                    dy[cursor, u],
                                    T.float32(0),
                                )
                                if largest
                                else dy[cursor, u] * weight[near]
                            )

    return kernel
