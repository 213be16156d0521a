"""Functions of single values, for programs that run without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm.script import tirx as T

Function = Callable[[Any, Any, Any], Any]


def _between(v: Any, low: Any, high: Any) -> Any:
    return T.Select(v < low, low, T.Select(v > high, high, v))


def _sigmoid(v: Any) -> Any:
    return T.float32(1) / (T.float32(1) + T.exp(-v))


def _gelu(v: Any) -> Any:
    return T.float32(0.5) * v * (T.float32(1) + T.erf(v * T.float32(0.7071067811865476)))


def _hardswish(v: Any) -> Any:
    return v * _between(v + T.float32(3), T.float32(0), T.float32(6)) / T.float32(6)


def _gelu_tanh(v: Any) -> Any:
    # (1 + tanh(u)) / 2 is sigmoid(2 u).
    u = T.float32(0.7978845608028654) * (v + T.float32(0.044715) * v * v * v)
    return v * _sigmoid(u + u)


def _hardsigmoid(v: Any) -> Any:
    return _between(v + T.float32(3), T.float32(0), T.float32(6)) / T.float32(6)


def _mish(v: Any) -> Any:
    # tanh(log(1 + e)) is n / (n + 2) with n = e * (e + 2); beyond 20 it is 1.
    e = T.exp(T.Select(v > T.float32(20), T.float32(20), v))
    n = e * (e + T.float32(2))
    return v * n / (n + T.float32(2))


def _softplus(v: Any, beta: Any, threshold: Any) -> Any:
    t = v * beta
    e = T.exp(T.Select(t > T.float32(0), -t, t))
    bent = T.Select(t > T.float32(0), t, T.float32(0)) + T.log(T.float32(1) + e)
    return T.Select(t > threshold, v, bent / beta)


# By name, of a value and two parameters.
FUNCTIONS: dict[str, Function] = {
    "bounds": _between,
    "elu": lambda v, a, b: T.Select(v > T.float32(0), v, a * (T.exp(v) - T.float32(1))),
    "gelu": lambda v, a, b: _gelu(v),
    "gelu_tanh": lambda v, a, b: _gelu_tanh(v),
    "hardsigmoid": lambda v, a, b: _hardsigmoid(v),
    "hardswish": lambda v, a, b: _hardswish(v),
    "leaky_relu": lambda v, a, b: T.Select(v > T.float32(0), v, a * v),
    "mish": lambda v, a, b: _mish(v),
    "sigmoid": lambda v, a, b: _sigmoid(v),
    "silu": lambda v, a, b: v * _sigmoid(v),
    "softplus": _softplus,
    "tanh": lambda v, a, b: T.tanh(v),
}


def apply(name: str) -> Any:
    """``y[p, c] = f(x[p, c])`` in the first rows and channels, zero in the others."""
    symbol = f"apply_{name}"
    function = FUNCTIONS[name]

    @T.prim_func(s_tir=True)
    def kernel(
        x_h: T.handle,
        y_h: T.handle,
        positions: T.int64,
        channels: T.int64,
        a: T.float32,
        b: T.float32,
    ):
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        rows = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (rows, width), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.Select(
                    T.And(p < positions, c < channels), function(x[p, c], a, b), T.float32(0)
                )

    return kernel


def softmax() -> Any:
    """Along the channels of every row; lanes and rows beyond are zero. NaN spreads over its row."""

    @T.prim_func(s_tir=True)
    def softmax(x_h: T.handle, y_h: T.handle, positions: T.int64, channels: T.int64):
        T.func_attr({"global_symbol": "softmax", "tirx.noalias": True})
        rows = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (rows, width), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(width):
                y[p, c] = T.float32(0)
            if p < positions:
                most = T.alloc_scalar("float32")
                total = T.alloc_scalar("float32")
                most = x[p, 0]
                for c in T.serial(channels):
                    most = T.Select(x[p, c] <= most, most, x[p, c])
                total = T.float32(0)
                for c in T.serial(channels):
                    y[p, c] = T.exp(x[p, c] - most)
                    total = total + y[p, c]
                for c in T.serial(channels):
                    y[p, c] = y[p, c] / total

    return softmax


def join() -> Any:
    """``y[p, before + c] = x[p, c]`` for the first channels; the rest of ``y`` stays as it is."""

    @T.prim_func(s_tir=True)
    def join(x_h: T.handle, y_h: T.handle, channels: T.int64, before: T.int64):
        T.func_attr({"global_symbol": "join", "tirx.noalias": True})
        rows = T.int64()
        inner = T.int64()
        width = T.int64()
        x = T.match_buffer(x_h, (rows, inner), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        for p in T.parallel(rows):
            for c in T.serial(channels):
                y[p, before + c] = x[p, c]

    return join


def filter_rows() -> Any:
    """``y[p, c] = bias[c] + sum of weight[tap, c] * x[table[tap, p], c]``: each channel by itself.

    A sample has ``area`` source pixels; -1 in the table is none.
    """

    @T.prim_func(s_tir=True)
    def filter_rows(
        x_h: T.handle,
        weight_h: T.handle,
        bias_h: T.handle,
        y_h: T.handle,
        table_h: T.handle,
        area: T.int64,
    ):
        T.func_attr({"global_symbol": "filter_rows", "tirx.noalias": True})
        source = T.int64()
        width = T.int64()
        rows = T.int64()
        taps = T.int64()
        pixels = T.int64()
        x = T.match_buffer(x_h, (source, width), "float32", align=4)
        weight = T.match_buffer(weight_h, (taps, width), "float32", align=4)
        bias = T.match_buffer(bias_h, (width,), "float32", align=4)
        y = T.match_buffer(y_h, (rows, width), "float32", align=4)
        table = T.match_buffer(table_h, (taps, pixels), "int32", align=4)
        for p in T.parallel(rows):
            if p < rows - 1:
                for c in T.serial(width):
                    y[p, c] = bias[c]
                for tap in T.serial(taps):
                    near: T.let = T.cast(table[tap, p % pixels], "int64")
                    if near >= 0:
                        for c in T.serial(width):
                            y[p, c] = y[p, c] + weight[tap, c] * x[p // pixels * area + near, c]
            else:
                for c in T.serial(width):
                    y[p, c] = T.float32(0)

    return filter_rows
