"""Statistics of channels, and the normalisation that is made of them, for blocks of ``b`` lanes."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T


@T.macro
def sum_centred(v, index, center, partial, low, task):  # type: ignore[no-untyped-def]
    """What one task adds up for :func:`channel_sums`."""
    for c in T.serial(partial.shape[2]):
        for u in T.vectorized(partial.shape[3]):
            partial[task, 0, c, u] = T.float32(0)
        for u in T.vectorized(partial.shape[3]):
            partial[task, 1, c, u] = T.float32(0)
    first: T.let = task * v.shape[0] // partial.shape[0]
    for i in T.serial((task + 1) * v.shape[0] // partial.shape[0] - first):
        j: T.let = first + i
        c: T.let = T.cast(index[j], "int64")
        t = T.alloc_buffer((partial.shape[3],), "float32")
        for u in T.vectorized(partial.shape[3]):
            t[u] = T.Select(v[j, u] < low, low, v[j, u]) - center[c, u]
        for u in T.vectorized(partial.shape[3]):
            partial[task, 0, c, u] = partial[task, 0, c, u] + t[u]
        for u in T.vectorized(partial.shape[3]):
            partial[task, 1, c, u] = partial[task, 1, c, u] + t[u] * t[u]


def unit_of(var: Any, count: Any, eps: Any) -> Any:
    """What divides by the standard deviation. A single entry is its own mean: 1 / sqrt(eps) would
    blow up its rounding error.
    """
    return T.Select(count > T.float32(1), T.float32(1) / T.sqrt(var + eps), T.float32(0))


def channel_sums(b: int) -> Any:
    """Per task, sums over its slots of ``t = max(v, low) - center`` (``partial[.., 0]``) and of ``t
    * t`` (``[.., 1]``).
    """
    name = f"channel_sums_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        v_h: T.handle, index_h: T.handle, center_h: T.handle, partial_h: T.handle, low: T.float32
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        blocks = T.int64()
        tasks = T.int64()
        v = T.match_buffer(v_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        center = T.match_buffer(center_h, (blocks, b), "float32", align=4)
        partial = T.match_buffer(partial_h, (tasks, 2, blocks, b), "float32", align=4)
        for task in T.parallel(tasks):
            sum_centred(v, index, center, partial, low, task)

    return kernel


def batch_affine(b: int) -> Any:
    """Scale, shift, mean, biased and unbiased variance, and count of each channel of ``t = max(v,
    low)``.

    ``positions`` is the count where entries that are not stored count as zeros, and negative where
    they do not count. ``weight`` and ``bias`` may be empty: one and zero. The rest is room for
    sums: a task's, and the mean.
    """
    name = f"batch_affine_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        v_h: T.handle,
        index_h: T.handle,
        weight_h: T.handle,
        bias_h: T.handle,
        partial_h: T.handle,
        seen_h: T.handle,
        center_h: T.handle,
        scale_h: T.handle,
        shift_h: T.handle,
        mean_h: T.handle,
        var_h: T.handle,
        unbiased_h: T.handle,
        count_h: T.handle,
        low: T.float32,
        eps: T.float32,
        positions: T.int64,
    ):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        slots = T.int64()
        blocks = T.int64()
        tasks = T.int64()
        channels = T.int64()
        weights = T.int64()
        biases = T.int64()
        v = T.match_buffer(v_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        weight = T.match_buffer(weight_h, (weights,), "float32", align=4)
        bias = T.match_buffer(bias_h, (biases,), "float32", align=4)
        partial = T.match_buffer(partial_h, (tasks, 2, blocks, b), "float32", align=4)
        seen = T.match_buffer(seen_h, (tasks, blocks), "int32", align=4)
        center = T.match_buffer(center_h, (blocks, b), "float32", align=4)
        scale = T.match_buffer(scale_h, (channels,), "float32", align=4)
        shift = T.match_buffer(shift_h, (channels,), "float32", align=4)
        mean = T.match_buffer(mean_h, (channels,), "float32", align=4)
        var = T.match_buffer(var_h, (channels,), "float32", align=4)
        unbiased = T.match_buffer(unbiased_h, (channels,), "float32", align=4)
        count = T.match_buffer(count_h, (channels,), "float32", align=4)
        for task in T.parallel(tasks):
            for c in T.serial(blocks):
                seen[task, c] = 0
                for u in T.vectorized(b):
                    partial[task, 0, c, u] = T.float32(0)
            first: T.let = task * slots // tasks
            for i in T.serial((task + 1) * slots // tasks - first):
                c: T.let = T.cast(index[first + i], "int64")
                seen[task, c] = seen[task, c] + 1
                for u in T.vectorized(b):
                    partial[task, 0, c, u] = partial[task, 0, c, u] + T.Select(
                        v[first + i, u] < low, low, v[first + i, u]
                    )
        for c in T.serial(blocks):
            for u in T.vectorized(b):
                center[c, u] = T.float32(0)
            for i in T.serial(tasks - 1):
                seen[0, c] = seen[0, c] + seen[i + 1, c]
            for i in T.serial(tasks):
                for u in T.vectorized(b):
                    center[c, u] = center[c, u] + partial[i, 0, c, u]
            for u in T.vectorized(b):
                center[c, u] = center[c, u] / T.cast(
                    T.max(T.Select(positions < 0, T.cast(seen[0, c], "int64"), positions), 1),
                    "float32",
                )
        for task in T.parallel(tasks):
            sum_centred(v, index, center, partial, low, task)
        for k in T.serial(channels):
            c: T.let = k // b
            u: T.let = k % b
            first = T.alloc_scalar("float32")
            second = T.alloc_scalar("float32")
            first = T.float32(0)
            second = T.float32(0)
            for i in T.serial(tasks):
                first = first + partial[i, 0, c, u]
                second = second + partial[i, 1, c, u]
            stored: T.let = T.cast(seen[0, c], "float32")
            count[k] = T.Select(positions < 0, stored, T.cast(positions, "float32"))
            mean[k] = center[c, u]
            # Entries that are not stored are zeros: each lies -mean away from the mean.
            sums: T.let = first - (count[k] - stored) * mean[k]
            offset: T.let = sums / T.max(count[k], T.float32(1))
            squares: T.let = second + (count[k] - stored) * mean[k] * mean[k] - sums * offset
            # Rounding may leave less than nothing; NaN stays.
            spread: T.let = T.Select(squares < T.float32(0), T.float32(0), squares)
            var[k] = spread / T.max(count[k], T.float32(1))
            unbiased[k] = spread / T.max(count[k] - T.float32(1), T.float32(1))
            unit: T.let = unit_of(var[k], count[k], eps)
            scale[k] = unit * T.if_then_else(weights > 0, weight[k], T.float32(1))
            shift[k] = T.if_then_else(biases > 0, bias[k], T.float32(0)) - mean[k] * scale[k]

    return kernel


def batch_affine_backward(b: int) -> Any:
    """``y = base``, plus where ``v > low`` what reaches ``v`` through scale and shift by way of the
    statistics; the gradients of weight and bias.

    ``y`` may be ``base``. ``dscale``, ``dshift`` and ``weight`` may be empty: zeros, and ones. What
    reaches an entry is a linear function of it; ``linear`` is room for those of all channels.
    """
    name = f"batch_affine_backward_{b}"

    @T.prim_func(s_tir=True)
    def kernel(
        base_h: T.handle,
        v_h: T.handle,
        index_h: T.handle,
        dscale_h: T.handle,
        dshift_h: T.handle,
        weight_h: T.handle,
        mean_h: T.handle,
        var_h: T.handle,
        count_h: T.handle,
        linear_h: T.handle,
        y_h: T.handle,
        dweight_h: T.handle,
        dbias_h: T.handle,
        low: T.float32,
        eps: T.float32,
    ):
        T.func_attr({"global_symbol": name})
        slots = T.int64()
        blocks = T.int64()
        channels = T.int64()
        scales = T.int64()
        shifts = T.int64()
        weights = T.int64()
        base = T.match_buffer(base_h, (slots, b), "float32", align=4)
        v = T.match_buffer(v_h, (slots, b), "float32", align=4)
        index = T.match_buffer(index_h, (slots,), "int32", align=4)
        dscale = T.match_buffer(dscale_h, (scales,), "float32", align=4)
        dshift = T.match_buffer(dshift_h, (shifts,), "float32", align=4)
        weight = T.match_buffer(weight_h, (weights,), "float32", align=4)
        mean = T.match_buffer(mean_h, (channels,), "float32", align=4)
        var = T.match_buffer(var_h, (channels,), "float32", align=4)
        count = T.match_buffer(count_h, (channels,), "float32", align=4)
        linear = T.match_buffer(linear_h, (2, blocks, b), "float32", align=4)
        y = T.match_buffer(y_h, (slots, b), "float32", align=4)
        dweight = T.match_buffer(dweight_h, (channels,), "float32", align=4)
        dbias = T.match_buffer(dbias_h, (channels,), "float32", align=4)
        for k in T.serial(blocks * b):
            linear[0, k // b, k % b] = T.float32(0)
            linear[1, k // b, k % b] = T.float32(0)
        for k in T.serial(channels):
            shifted: T.let = T.if_then_else(shifts > 0, dshift[k], T.float32(0))
            gain: T.let = T.if_then_else(weights > 0, weight[k], T.float32(1))
            entries: T.let = T.max(count[k], T.float32(1))
            unit: T.let = unit_of(var[k], count[k], eps)
            # shift = bias - mean * scale and scale = weight * unit
            whole: T.let = T.if_then_else(scales > 0, dscale[k], T.float32(0)) - mean[k] * shifted
            factor: T.let = -whole * gain * unit * unit * unit / entries
            linear[0, k // b, k % b] = factor
            linear[1, k // b, k % b] = -gain * unit * shifted / entries - factor * mean[k]
            dweight[k] = whole * unit
            dbias[k] = shifted
        for j in T.parallel(slots):
            c: T.let = T.cast(index[j], "int64")
            for u in T.vectorized(b):
                y[j, u] = base[j, u] + T.Select(
                    v[j, u] > low, v[j, u] * linear[0, c, u] + linear[1, c, u], T.float32(0)
                )

    return kernel
