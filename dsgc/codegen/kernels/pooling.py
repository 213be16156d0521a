"""Max and average pooling of packed maps: the output keeps a block that is selected anywhere in its
window.

The blocks of a position are sorted, so the union over a window is a merge of its rows. A window has
at most 254 taps; the heads of the merge fit in 1 KiB of stack.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

TAPS = 254
FROM_ZERO = 255
END = 2147483647


def count_union() -> Any:
    """``counts[p]``: how many blocks the window of output position ``p`` holds."""

    @T.prim_func(s_tir=True)
    def count_union(
        index_h: T.handle,
        rowptr_h: T.handle,
        counts_h: T.handle,
        height: T.int32,
        width: T.int32,
        out_height: T.int32,
        out_width: T.int32,
        kernel_h: T.int32,
        kernel_w: T.int32,
        stride_h: T.int32,
        stride_w: T.int32,
        pad_h: T.int32,
        pad_w: T.int32,
    ):
        T.func_attr({"global_symbol": "count_union", "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        positions = T.int64()
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        counts = T.match_buffer(counts_h, (positions,), "int32", align=4)
        for p in T.parallel(positions):
            p32: T.let = T.cast(p, "int32")
            line: T.let = T.truncdiv(p32, out_width)
            top: T.let = T.truncmod(line, out_height) * stride_h - pad_h
            left: T.let = T.truncmod(p32, out_width) * stride_w - pad_w
            base: T.let = T.truncdiv(line, out_height) * height
            head = T.alloc_buffer((TAPS,), "int32")
            found = T.alloc_scalar("int32")
            current = T.alloc_scalar("int32")
            for t in T.serial(kernel_h * kernel_w):
                h: T.let = top + T.truncdiv(t, kernel_w)
                c: T.let = left + T.truncmod(t, kernel_w)
                head[t] = T.int32(END)
                if (h >= 0) & (h < height) & (c >= 0) & (c < width):
                    head[t] = rowptr[T.cast((base + h) * width + c, "int64")]
            found = 0
            current = 0
            while current != T.int32(END):
                current = T.int32(END)
                for t in T.serial(kernel_h * kernel_w):
                    if head[t] != T.int32(END):
                        q: T.let = T.cast(
                            (base + top + T.truncdiv(t, kernel_w)) * width
                            + left
                            + T.truncmod(t, kernel_w),
                            "int64",
                        )
                        if head[t] < rowptr[q + 1]:
                            current = T.min(current, index[T.cast(head[t], "int64")])
                if current != T.int32(END):
                    found = found + 1
                    for t in T.serial(kernel_h * kernel_w):
                        if head[t] != T.int32(END):
                            q: T.let = T.cast(
                                (base + top + T.truncdiv(t, kernel_w)) * width
                                + left
                                + T.truncmod(t, kernel_w),
                                "int64",
                            )
                            if head[t] < rowptr[q + 1]:
                                if index[T.cast(head[t], "int64")] == current:
                                    head[t] = head[t] + 1
            counts[p] = found

    return count_union


def pool(b: int, mode: str) -> Any:
    """Fills ``index`` and ``values`` of the union; for ``mode="max"`` also the winning tap.

    A position of the image that did not select the block counts as zero, also for the maximum;
    padding does not. ``gap`` is the first such tap: of equal values the first one wins.
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
        height: T.int32,
        width: T.int32,
        out_height: T.int32,
        out_width: T.int32,
        kernel_h: T.int32,
        kernel_w: T.int32,
        stride_h: T.int32,
        stride_w: T.int32,
        pad_h: T.int32,
        pad_w: T.int32,
        include_pad: T.int32,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        out_slots = T.int64()
        out_rows = T.int64()
        arg_slots = T.int64()
        x = T.match_buffer(x_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        out_index = T.match_buffer(out_index_h, (out_slots,), "int32", align=4)
        out_rowptr = T.match_buffer(out_rowptr_h, (out_rows,), "int32", align=4)
        y = T.match_buffer(y_h, (out_slots, b), "float32", align=4)
        argmax = T.match_buffer(argmax_h, (arg_slots, b), "uint8", align=1)
        for p in T.parallel(out_rows - 1):
            p32: T.let = T.cast(p, "int32")
            line: T.let = T.truncdiv(p32, out_width)
            top: T.let = T.truncmod(line, out_height) * stride_h - pad_h
            left: T.let = T.truncmod(p32, out_width) * stride_w - pad_w
            base: T.let = T.truncdiv(line, out_height) * height
            inside: T.let = T.max(
                T.min(top + kernel_h, height) - T.max(top, T.int32(0)), T.int32(0)
            ) * T.max(T.min(left + kernel_w, width) - T.max(left, T.int32(0)), T.int32(0))
            padded: T.let = (T.min(top + kernel_h, height + pad_h) - top) * (
                T.min(left + kernel_w, width + pad_w) - left
            )
            weight: T.let = T.float32(1) / T.cast(
                T.Select(include_pad != 0, padded, inside), "float32"
            )
            head = T.alloc_buffer((TAPS,), "int32")
            current = T.alloc_scalar("int32")
            gap = T.alloc_scalar("int32")
            best = T.alloc_buffer((b,), "float32")
            winner = T.alloc_buffer((b,), "int32")
            for t in T.serial(kernel_h * kernel_w):
                h: T.let = top + T.truncdiv(t, kernel_w)
                c: T.let = left + T.truncmod(t, kernel_w)
                head[t] = T.int32(END)
                if (h >= 0) & (h < height) & (c >= 0) & (c < width):
                    head[t] = rowptr[T.cast((base + h) * width + c, "int64")]
            first: T.let = T.cast(out_rowptr[p], "int64")
            for j in T.serial(T.cast(out_rowptr[p + 1], "int64") - first):
                current = T.int32(END)
                gap = T.int32(END)
                for t in T.serial(kernel_h * kernel_w):
                    if head[t] != T.int32(END):
                        q: T.let = T.cast(
                            (base + top + T.truncdiv(t, kernel_w)) * width
                            + left
                            + T.truncmod(t, kernel_w),
                            "int64",
                        )
                        if head[t] < rowptr[q + 1]:
                            current = T.min(current, index[T.cast(head[t], "int64")])
                for u in T.vectorized(b):
                    best[u] = T.float32(float("-inf")) if largest else T.float32(0)
                for u in T.vectorized(b):
                    winner[u] = T.int32(FROM_ZERO)
                for t in T.serial(kernel_h * kernel_w):
                    if head[t] != T.int32(END):
                        q: T.let = T.cast(
                            (base + top + T.truncdiv(t, kernel_w)) * width
                            + left
                            + T.truncmod(t, kernel_w),
                            "int64",
                        )
                        if head[t] < rowptr[q + 1]:
                            if index[T.cast(head[t], "int64")] == current:
                                s: T.let = T.cast(head[t], "int64")
                                if largest:
                                    for u in T.vectorized(b):
                                        winner[u] = T.Select(
                                            (x[s, u] > best[u]) | T.isnan(x[s, u]), t, winner[u]
                                        )
                                    for u in T.vectorized(b):
                                        best[u] = T.Select(
                                            (x[s, u] > best[u]) | T.isnan(x[s, u]),
                                            x[s, u],
                                            best[u],
                                        )
                                else:
                                    for u in T.vectorized(b):
                                        best[u] = best[u] + x[s, u]
                                head[t] = head[t] + 1
                            else:
                                gap = T.min(gap, t)
                        else:
                            gap = T.min(gap, t)
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
                        y[first + j, u] = best[u] * weight

    return kernel


def pool_backward(b: int, mode: str) -> Any:
    """``dx[slot]``: every input slot gathers from the windows that hold it."""
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
        height: T.int32,
        width: T.int32,
        out_height: T.int32,
        out_width: T.int32,
        kernel_h: T.int32,
        kernel_w: T.int32,
        stride_h: T.int32,
        stride_w: T.int32,
        pad_h: T.int32,
        pad_w: T.int32,
        include_pad: T.int32,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        rows = T.int64()
        out_slots = T.int64()
        out_rows = T.int64()
        arg_slots = T.int64()
        dy = T.match_buffer(dy_h, (out_slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (rows,), "int32", align=4)
        out_index = T.match_buffer(out_index_h, (out_slots,), "int32", align=4)
        out_rowptr = T.match_buffer(out_rowptr_h, (out_rows,), "int32", align=4)
        argmax = T.match_buffer(argmax_h, (arg_slots, b), "uint8", align=1)
        dx = T.match_buffer(dx_h, (slots, b), "float32", align=4)
        for q in T.parallel(rows - 1):
            q32: T.let = T.cast(q, "int32")
            line: T.let = T.truncdiv(q32, width)
            h: T.let = T.truncmod(line, height)
            c: T.let = T.truncmod(q32, width)
            base: T.let = T.truncdiv(line, height) * out_height
            begin: T.let = T.cast(rowptr[q], "int64")
            for j in T.serial(T.cast(rowptr[q + 1], "int64") - begin):
                for u in T.vectorized(b):
                    dx[begin + j, u] = T.float32(0)
            for t in T.serial(kernel_h * kernel_w):
                at_h: T.let = h + pad_h - T.truncdiv(t, kernel_w)
                at_w: T.let = c + pad_w - T.truncmod(t, kernel_w)
                oh: T.let = T.truncdiv(at_h, stride_h)
                ow: T.let = T.truncdiv(at_w, stride_w)
                if (
                    (at_h >= 0)
                    & (oh < out_height)
                    & (at_w >= 0)
                    & (ow < out_width)
                    & (oh * stride_h == at_h)
                    & (ow * stride_w == at_w)
                ):
                    top: T.let = oh * stride_h - pad_h
                    left: T.let = ow * stride_w - pad_w
                    inside: T.let = (T.min(top + kernel_h, height) - T.max(top, T.int32(0))) * (
                        T.min(left + kernel_w, width) - T.max(left, T.int32(0))
                    )
                    padded: T.let = (T.min(top + kernel_h, height + pad_h) - top) * (
                        T.min(left + kernel_w, width + pad_w) - left
                    )
                    weight: T.let = T.float32(1) / T.cast(
                        T.Select(include_pad != 0, padded, inside), "float32"
                    )
                    cursor = T.alloc_scalar("int64")
                    cursor = T.cast(
                        out_rowptr[T.cast((base + oh) * out_width + ow, "int64")], "int64"
                    )
                    for j in T.serial(T.cast(rowptr[q + 1], "int64") - begin):
                        while out_index[cursor] != index[begin + j]:
                            cursor = cursor + 1
                        for u in T.vectorized(b):
                            dx[begin + j, u] = dx[begin + j, u] + (
                                T.Select(
                                    T.cast(argmax[cursor, u], "int32") == t,
                                    dy[cursor, u],
                                    T.float32(0),
                                )
                                if largest
                                else dy[cursor, u] * weight
                            )

    return kernel
