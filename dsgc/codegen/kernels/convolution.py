"""Convolution of packed activations: only selected input blocks meet only selected output blocks.

One task holds an output block: for each kernel tap its weights (``blocks x bi x bo`` floats, 8 to
32 KiB) stay in the first-level cache while the positions that chose the block stream by. Per
position and tap, every input block that the neighbour has selected adds ``bi`` multiply-adds of
``bo`` lanes.

Geometry is passed at run time, so that one kernel serves every layer: the source pixel of target
pixel ``h`` at tap ``r`` is ``(h * mul + off + r * step) / div``, where a division with remainder
means that the tap does not touch the pixel. Forward: ``mul=stride, off=-padding, step=dilation,
div=1``. Backward-data: ``mul=1, off=padding, step=-dilation, div=stride``.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

CHUNK = 256  # target positions whose coordinates are kept at hand: 3 KiB
ACCUMULATORS = 4  # independent sums, enough to hide the latency of a multiply-add


def packed_convolution(bi: int, bo: int, divided: bool) -> Any:
    """``y[slot] = bias + sum over taps and selected input blocks``, for target blocks of ``bo``
    lanes.

    ``divided`` kernels check ``div`` (backward-data of strided convolutions); the others take it as
    1.
    """
    name = f"packed_convolution_{bi}_{bo}" + ("_divided" if divided else "")
    sums = min(ACCUMULATORS, bi)

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        position_h: T.handle,
        y_h: T.handle,
        height: T.int32,
        width: T.int32,
        target_height: T.int32,
        target_width: T.int32,
        kernel_width: T.int32,
        mul_h: T.int32,
        mul_w: T.int32,
        off_h: T.int32,
        off_w: T.int32,
        step_h: T.int32,
        step_w: T.int32,
        div_h: T.int32,
        div_w: T.int32,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        source_slots = T.int64()
        source_slots_index = T.int64()
        source_rows = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        blocks_in = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (source_slots, bi), "float32", align=4)
        index = T.match_buffer(index_h, (source_slots_index,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (source_rows,), "int32", align=4)
        w = T.match_buffer(w_h, (blocks_out, taps, blocks_in, bi, bo), "float32", align=4)
        bias = T.match_buffer(bias_h, (blocks_out, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        position = T.match_buffer(position_h, (slots,), "int32", align=4)
        y = T.match_buffer(y_h, (slots, bo), "float32", align=4)
        for task in T.parallel(starts - 1):
            n: T.let = task % blocks_out
            first: T.let = T.cast(start[task], "int64")
            length: T.let = T.cast(start[task + 1], "int64") - first
            origin = T.alloc_buffer((3, CHUNK), "int32")
            for chunk in T.serial((length + (CHUNK - 1)) // CHUNK):
                begin: T.let = first + chunk * CHUNK
                members: T.let = T.min(first + length - begin, T.int64(CHUNK))
                for i in T.serial(members):
                    p: T.let = position[begin + i]
                    column: T.let = T.truncmod(p, target_width)
                    line: T.let = T.truncdiv(p, target_width)
                    origin[0, i] = T.truncdiv(line, target_height) * height
                    origin[1, i] = T.truncmod(line, target_height) * mul_h + off_h
                    origin[2, i] = column * mul_w + off_w
                    for v in T.vectorized(bo):
                        y[T.cast(slot[begin + i], "int64"), v] = bias[n, v]
                for tap in T.serial(taps):
                    shift_h: T.let = T.truncdiv(T.cast(tap, "int32"), kernel_width) * step_h
                    shift_w: T.let = T.truncmod(T.cast(tap, "int32"), kernel_width) * step_w
                    for i in T.serial(members):
                        at_h: T.let = origin[1, i] + shift_h
                        at_w: T.let = origin[2, i] + shift_w
                        h: T.let = T.truncdiv(at_h, div_h) if divided else at_h
                        c: T.let = T.truncdiv(at_w, div_w) if divided else at_w
                        inside: T.let = (at_h >= 0) & (h < height) & (at_w >= 0) & (c < width)
                        hit: T.let = (
                            (inside & (h * div_h == at_h) & (c * div_w == at_w))
                            if divided
                            else inside
                        )
                        if hit:
                            q: T.let = T.cast((origin[0, i] + h) * width + c, "int64")
                            low: T.let = T.cast(rowptr[q], "int64")
                            selected: T.let = T.cast(rowptr[q + 1], "int64") - low
                            acc = T.alloc_buffer((sums, bo), "float32")
                            for u in T.unroll(sums):
                                for v in T.vectorized(bo):
                                    acc[u, v] = T.float32(0)
                            for j in T.serial(selected):
                                b: T.let = T.cast(index[low + j], "int64")
                                for s in T.unroll(bi):
                                    for v in T.vectorized(bo):
                                        acc[s % sums, v] = (
                                            acc[s % sums, v] + x[low + j, s] * w[n, tap, b, s, v]
                                        )
                            out: T.let = T.cast(slot[begin + i], "int64")
                            for u in T.unroll(sums):
                                for v in T.vectorized(bo):
                                    y[out, v] = y[out, v] + acc[u, v]

    return kernel


def packed_weight_gradient(bi: int, bo: int) -> Any:
    """``dw[n, tap, c] += outer(x[q, c], dy[p, n])`` over the positions that chose ``n`` and whose
    neighbour chose ``c``.

    A task owns one output block and a range of taps; the gradient of one tap stays in the first-
    level cache.
    """
    name = f"packed_weight_gradient_{bi}_{bo}"

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        dy_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        position_h: T.handle,
        dw_h: T.handle,
        height: T.int32,
        width: T.int32,
        target_height: T.int32,
        target_width: T.int32,
        kernel_width: T.int32,
        mul_h: T.int32,
        mul_w: T.int32,
        off_h: T.int32,
        off_w: T.int32,
        step_h: T.int32,
        step_w: T.int32,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        source_slots = T.int64()
        source_slots_index = T.int64()
        source_rows = T.int64()
        blocks_out = T.int64()
        taps = T.int64()
        blocks_in = T.int64()
        starts = T.int64()
        slots = T.int64()
        x = T.match_buffer(x_h, (source_slots, bi), "float32", align=4)
        index = T.match_buffer(index_h, (source_slots_index,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (source_rows,), "int32", align=4)
        dy = T.match_buffer(dy_h, (slots, bo), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        position = T.match_buffer(position_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (blocks_out, taps, blocks_in, bi, bo), "float32", align=4)
        for task in T.parallel(blocks_out * taps):
            n: T.let = task // taps
            tap: T.let = task % taps
            shift_h: T.let = T.truncdiv(T.cast(tap, "int32"), kernel_width) * step_h + off_h
            shift_w: T.let = T.truncmod(T.cast(tap, "int32"), kernel_width) * step_w + off_w
            for c in T.serial(blocks_in):
                for s in T.serial(bi):
                    for v in T.vectorized(bo):
                        dw[n, tap, c, s, v] = T.float32(0)
            for tile in T.serial((starts - 1) // blocks_out):
                first: T.let = T.cast(start[tile * blocks_out + n], "int64")
                last: T.let = T.cast(start[tile * blocks_out + n + 1], "int64")
                for i in T.serial(last - first):
                    p: T.let = position[first + i]
                    line: T.let = T.truncdiv(p, target_width)
                    h: T.let = T.truncmod(line, target_height) * mul_h + shift_h
                    c: T.let = T.truncmod(p, target_width) * mul_w + shift_w
                    if (h >= 0) & (h < height) & (c >= 0) & (c < width):
                        q: T.let = T.cast(
                            (T.truncdiv(line, target_height) * height + h) * width + c, "int64"
                        )
                        low: T.let = T.cast(rowptr[q], "int64")
                        g: T.let = T.cast(slot[first + i], "int64")
                        d = T.alloc_buffer((bo,), "float32")
                        for v in T.vectorized(bo):
                            d[v] = dy[g, v]
                        for j in T.serial(T.cast(rowptr[q + 1], "int64") - low):
                            b: T.let = T.cast(index[low + j], "int64")
                            for s in T.unroll(bi):
                                for v in T.vectorized(bo):
                                    dw[n, tap, b, s, v] = dw[n, tap, b, s, v] + x[low + j, s] * d[v]

    return kernel
