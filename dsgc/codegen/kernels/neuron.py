"""Neuron-wise selection (block 1, the published DSG): products of whole windows and single neurons.

Nothing of a window's product with one neuron is shared with another pair, so what limits these
kernels is how often a window comes from the cache. The source is therefore cut into groups of
``depth`` vectors of channels, ``x[group, row, depth, LANES]``: one group of a tile of positions
stays in the first-level cache while all neurons visit it. The last row is zero and stands for
pixels outside the image: for those a table holds a number that is larger than every row, so that
finding a row needs no branch. Weights are ``w[neuron, tap, group, depth, LANES]``.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.prefetch import fetch
from dsgc.codegen.tiles import NEURON_LANES as LANES

MEMBERS = 4  # selected neurons computed together: they share the weight row
CHUNK = 120  # positions of a weight gradient whose source rows are looked up at a time


@T.macro
def add_products(sums, x, w, g, n, tap, k, qa, qb, qc, qd):  # type: ignore[no-untyped-def]  # a macro: its arguments are buffers and numbers
    """Adds to the four vectors of ``sums`` what vector ``k`` of the source rows gives."""
    for v in T.vectorized(LANES):
        sums[0, v] = sums[0, v] + x[g, qa, k, v] * w[n, tap, g, k, v]
    for v in T.vectorized(LANES):
        sums[1, v] = sums[1, v] + x[g, qb, k, v] * w[n, tap, g, k, v]
    for v in T.vectorized(LANES):
        sums[2, v] = sums[2, v] + x[g, qc, k, v] * w[n, tap, g, k, v]
    for v in T.vectorized(LANES):
        sums[3, v] = sums[3, v] + x[g, qd, k, v] * w[n, tap, g, k, v]


def neuron_convolution(depth: int) -> Any:
    """``y[slot] = bias[n] + <x window, w[n]>``; geometry as in
    :mod:`dsgc.codegen.kernels.convolution`.

    A task is a tile of positions, with ``most`` slots at most. Sums stay vectors, in ``sums``,
    until the last group.
    """
    name = f"neuron_convolution_{depth}"

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        w_h: T.handle,
        bias_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        y_h: T.handle,
        most: T.int64,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        groups = T.int64()
        neurons = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int64", align=8)
        x = T.match_buffer(x_h, (groups, rows, depth, LANES), "float32", align=4)
        w = T.match_buffer(w_h, (neurons, taps, groups, depth, LANES), "float32", align=4)
        bias = T.match_buffer(bias_h, (neurons,), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        y = T.match_buffer(y_h, (slots,), "float32", align=4)
        for task in T.parallel((starts - 1) // neurons):
            own: T.let = T.cast(start[task * neurons], "int64")
            length: T.let = T.cast(start[(task + 1) * neurons], "int64") - own
            sums = T.alloc_buffer((most, LANES), "float32")
            for i in T.serial(length):
                for v in T.vectorized(LANES):
                    sums[i, v] = T.float32(0)
            for g in T.serial(groups):
                for n in T.serial(neurons):
                    first: T.let = T.cast(start[task * neurons + n], "int64")
                    last: T.let = T.cast(start[task * neurons + n + 1], "int64") - 1
                    for tap in T.serial(taps):
                        for k in T.unroll(depth):
                            T.evaluate(fetch(T.address_of(w[n + 1, tap, g, k, 0])))
                    for group in T.serial((last - first + MEMBERS) // MEMBERS):
                        # The last member may come again, with the same result.
                        a: T.let = first + group * MEMBERS
                        b: T.let = T.min(a + 1, last)
                        c: T.let = T.min(a + 2, last)
                        d: T.let = T.min(a + 3, last)
                        base = T.alloc_buffer((MEMBERS,), "int64")
                        base[0] = T.cast(sample[a], "int64") * area
                        base[1] = T.cast(sample[b], "int64") * area
                        base[2] = T.cast(sample[c], "int64") * area
                        base[3] = T.cast(sample[d], "int64") * area
                        even = T.alloc_buffer((MEMBERS, LANES), "float32")
                        odd = T.alloc_buffer((MEMBERS, LANES), "float32")
                        for v in T.vectorized(LANES):
                            even[0, v] = sums[a - own, v]
                        for v in T.vectorized(LANES):
                            even[1, v] = sums[b - own, v]
                        for v in T.vectorized(LANES):
                            even[2, v] = sums[c - own, v]
                        for v in T.vectorized(LANES):
                            even[3, v] = sums[d - own, v]
                        for u in T.unroll(MEMBERS):
                            for v in T.vectorized(LANES):
                                odd[u, v] = T.float32(0)
                        for tap in T.serial(taps):
                            qa: T.let = T.min(base[0] + table[tap, pixel[a]], rows - 1)
                            qb: T.let = T.min(base[1] + table[tap, pixel[b]], rows - 1)
                            qc: T.let = T.min(base[2] + table[tap, pixel[c]], rows - 1)
                            qd: T.let = T.min(base[3] + table[tap, pixel[d]], rows - 1)
                            for k in T.unroll((depth + 1) // 2):
                                add_products(even, x, w, g, n, tap, 2 * k, qa, qb, qc, qd)
                                if 2 * k + 1 < depth:
                                    add_products(odd, x, w, g, n, tap, 2 * k + 1, qa, qb, qc, qd)
                        for v in T.vectorized(LANES):
                            sums[a - own, v] = even[0, v] + odd[0, v]
                        for v in T.vectorized(LANES):
                            sums[b - own, v] = even[1, v] + odd[1, v]
                        for v in T.vectorized(LANES):
                            sums[c - own, v] = even[2, v] + odd[2, v]
                        for v in T.vectorized(LANES):
                            sums[d - own, v] = even[3, v] + odd[3, v]
            for n in T.serial(neurons):
                begin: T.let = T.cast(start[task * neurons + n], "int64")
                for i in T.serial(T.cast(start[task * neurons + n + 1], "int64") - begin):
                    half = T.alloc_buffer((LANES,), "float32")
                    for v in T.vectorized(8):
                        half[v] = sums[begin - own + i, v] + sums[begin - own + i, v + 8]
                    for v in T.vectorized(4):
                        half[v] = half[v] + half[v + 4]
                    y[T.cast(slot[begin + i], "int64")] = bias[n] + (
                        (half[0] + half[1]) + (half[2] + half[3])
                    )

    return kernel


def neuron_weight_gradient(depth: int) -> Any:
    """``dw[n, tap] += dy[p, n] * x[q]`` over the positions that selected neuron ``n``.

    A task owns a group of channels and one of ``splits`` parts of the neurons, and goes through the
    tiles of positions; positions of even and odd number are summed apart, as additions to one
    register have to wait for each other.
    """
    name = f"neuron_weight_gradient_{depth}"

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        dy_h: T.handle,
        start_h: T.handle,
        slot_h: T.handle,
        sample_h: T.handle,
        pixel_h: T.handle,
        dw_h: T.handle,
        splits: T.int64,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        rows = T.int64()
        groups = T.int64()
        neurons = T.int64()
        taps = T.int64()
        pixels = T.int64()
        starts = T.int64()
        slots = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int64", align=8)
        x = T.match_buffer(x_h, (groups, rows, depth, LANES), "float32", align=4)
        dy = T.match_buffer(dy_h, (slots,), "float32", align=4)
        start = T.match_buffer(start_h, (starts,), "int32", align=4)
        slot = T.match_buffer(slot_h, (slots,), "int32", align=4)
        sample = T.match_buffer(sample_h, (slots,), "int32", align=4)
        pixel = T.match_buffer(pixel_h, (slots,), "int32", align=4)
        dw = T.match_buffer(dw_h, (neurons, taps, groups, depth, LANES), "float32", align=4)
        for task in T.parallel(groups * splits):
            g: T.let = task // splits
            n0: T.let = task % splits * neurons // splits
            n1: T.let = (task % splits + 1) * neurons // splits
            row = T.alloc_buffer((CHUNK + 1,), "int64")
            value = T.alloc_buffer((CHUNK + 1,), "float32")
            for i in T.serial((n1 - n0) * taps):
                for k in T.unroll(depth):
                    for v in T.vectorized(LANES):
                        dw[n0 + i // taps, i % taps, g, k, v] = T.float32(0)
            for tile in T.serial((starts - 1) // neurons):
                for own in T.serial(n1 - n0):
                    n: T.let = n0 + own
                    first: T.let = T.cast(start[tile * neurons + n], "int64")
                    last: T.let = T.cast(start[tile * neurons + n + 1], "int64")
                    for chunk in T.serial((last - first + (CHUNK - 1)) // CHUNK):
                        begin: T.let = first + chunk * CHUNK
                        members: T.let = T.min(last - begin, T.int64(CHUNK))
                        for i in T.serial(members):
                            value[i] = dy[T.cast(slot[begin + i], "int64")]
                        for tap in T.serial(taps):
                            for i in T.serial(members):
                                row[i] = T.min(
                                    T.cast(sample[begin + i], "int64") * area
                                    + table[tap, pixel[begin + i]],
                                    rows - 1,
                                )
                            row[members] = rows - 1
                            value[members] = T.float32(0)
                            even = T.alloc_buffer((depth, LANES), "float32")
                            odd = T.alloc_buffer((depth, LANES), "float32")
                            for k in T.unroll(depth):
                                for v in T.vectorized(LANES):
                                    even[k, v] = dw[n, tap, g, k, v]
                                for v in T.vectorized(LANES):
                                    odd[k, v] = T.float32(0)
                            for i in T.serial((members + 1) // 2):
                                for k in T.unroll(depth):
                                    for v in T.vectorized(LANES):
                                        even[k, v] = (
                                            even[k, v] + value[2 * i] * x[g, row[2 * i], k, v]
                                        )
                                    for v in T.vectorized(LANES):
                                        odd[k, v] = (
                                            odd[k, v]
                                            + value[2 * i + 1] * x[g, row[2 * i + 1], k, v]
                                        )
                            for k in T.unroll(depth):
                                for v in T.vectorized(LANES):
                                    dw[n, tap, g, k, v] = even[k, v] + odd[k, v]

    return kernel


def neuron_data_gradient(depth: int) -> Any:
    """``dx[q] = sum over taps and the neurons that position p = table[tap, q] selected of
    dy[p, n] * w[n, tap]``, for a dense input: every channel of ``q`` is a target.

    ``depth`` vectors of channels are summed in registers; the weights stream by, so this is bound
    by the second-level cache.
    """
    name = f"neuron_data_gradient_{depth}"

    @T.prim_func(s_tir=True)
    def kernel(
        dy_h: T.handle,
        index_h: T.handle,
        rowptr_h: T.handle,
        w_h: T.handle,
        dx_h: T.handle,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        source_rows = T.int64()
        rows = T.int64()
        groups = T.int64()
        neurons = T.int64()
        taps = T.int64()
        pixels = T.int64()
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        dy = T.match_buffer(dy_h, (slots,), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        rowptr = T.match_buffer(rowptr_h, (source_rows,), "int32", align=4)
        w = T.match_buffer(w_h, (neurons, taps, groups, depth, LANES), "float32", align=4)
        dx = T.match_buffer(dx_h, (rows, groups, depth, LANES), "float32", align=4)
        for q in T.parallel(rows):
            for g in T.serial(groups):
                acc = T.alloc_buffer((depth, LANES), "float32")
                for k in T.unroll(depth):
                    for v in T.vectorized(LANES):
                        acc[k, v] = T.float32(0)
                for tap in T.serial(taps):
                    near: T.let = table[tap, q % pixels]
                    if near >= 0:
                        p: T.let = q // pixels * area + T.cast(near, "int64")
                        first: T.let = T.cast(rowptr[p], "int64")
                        for j in T.serial(T.cast(rowptr[p + 1], "int64") - first):
                            n: T.let = T.cast(index[first + j], "int64")
                            for k in T.unroll(depth):
                                for v in T.vectorized(LANES):
                                    acc[k, v] = acc[k, v] + dy[first + j] * w[n, tap, g, k, v]
                for k in T.unroll(depth):
                    for v in T.vectorized(LANES):
                        dx[q, g, k, v] = acc[k, v]

    return kernel
