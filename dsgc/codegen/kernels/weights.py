"""Weights between PyTorch's layout ``[K, C, taps]`` (any strides) and blocks of ``bi x bo`` lanes;
missing channels are zero.

Each has three forms, which differ in what lies side by side: input channels (``_by_input``:
channels-last weights), output channels (``_by_output``: the same transposed, for backward-data),
or, as far as is known, taps.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

FORMS = ("", "_by_input", "_by_output")


def block_weights(bi: int, bo: int, form: str) -> Any:
    """``blocked[n, tap, c, s, v] = w[n * bo + v, c * bi + s, tap]``.

    For backward-data call it with ``w`` transposed (``w.transpose(0, 1)``): the roles of the
    channels are exchanged.
    """
    name = f"block_weights_{bi}_{bo}{form}"

    @T.prim_func(s_tir=True)
    def kernel(w_h: T.handle, blocked_h: T.handle):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        outputs = T.int64()
        inputs = T.int64()
        taps = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        s2 = T.int64()
        blocks_out = T.int64()
        blocks_in = T.int64()
        w = T.match_buffer(
            w_h,
            (outputs, inputs, taps),
            "float32",
            strides=[
                T.int64(1) if form == "_by_output" else s0,
                T.int64(1) if form == "_by_input" else s1,
                s2,
            ],
            align=4,
            offset_factor=1,
        )
        blocked = T.match_buffer(
            blocked_h, (blocks_out, taps, blocks_in, bi, bo), "float32", align=4
        )
        for task in T.parallel(blocks_out * blocks_in):
            n: T.let = task // blocks_in
            c: T.let = task % blocks_in
            if (n * bo + bo <= outputs) & (c * bi + bi <= inputs):
                if form == "":
                    for s in T.serial(bi):
                        for tap in T.serial(taps):
                            for v in T.vectorized(bo):
                                blocked[n, tap, c, s, v] = w[n * bo + v, c * bi + s, tap]
                else:
                    for tap in T.serial(taps):
                        for s in T.unroll(bi):
                            for v in T.vectorized(bo):
                                blocked[n, tap, c, s, v] = w[n * bo + v, c * bi + s, tap]
            else:
                for tap in T.serial(taps):
                    for s in T.serial(bi):
                        for v in T.serial(bo):
                            blocked[n, tap, c, s, v] = T.if_then_else(
                                (n * bo + v < outputs) & (c * bi + s < inputs),
                                w[
                                    T.min(n * bo + v, outputs - 1),
                                    T.min(c * bi + s, inputs - 1),
                                    tap,
                                ],
                                T.float32(0),
                            )

    return kernel


def unblock_weights(bi: int, bo: int, form: str) -> Any:
    """The inverse of :func:`block_weights`."""
    name = f"unblock_weights_{bi}_{bo}{form}"

    @T.prim_func(s_tir=True)
    def kernel(blocked_h: T.handle, w_h: T.handle):
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        outputs = T.int64()
        inputs = T.int64()
        taps = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        s2 = T.int64()
        blocks_out = T.int64()
        blocks_in = T.int64()
        w = T.match_buffer(
            w_h,
            (outputs, inputs, taps),
            "float32",
            strides=[
                T.int64(1) if form == "_by_output" else s0,
                T.int64(1) if form == "_by_input" else s1,
                s2,
            ],
            align=4,
            offset_factor=1,
        )
        blocked = T.match_buffer(
            blocked_h, (blocks_out, taps, blocks_in, bi, bo), "float32", align=4
        )
        for task in T.parallel(blocks_out * blocks_in):
            n: T.let = task // blocks_in
            c: T.let = task % blocks_in
            if (n * bo + bo <= outputs) & (c * bi + bi <= inputs):
                if form == "":
                    # Gradients come as blocks of the transposed weight: so they are written in
                    # the order of memory.
                    for s in T.serial(bi):
                        for v in T.serial(bo):
                            for tap in T.serial(taps):
                                w[n * bo + v, c * bi + s, tap] = blocked[n, tap, c, s, v]
                else:
                    for tap in T.serial(taps):
                        for v in T.unroll(bo):
                            for s in T.vectorized(bi):
                                w[n * bo + v, c * bi + s, tap] = blocked[n, tap, c, s, v]
            else:
                for v in T.serial(T.min(T.int64(bo), outputs - n * bo)):
                    for s in T.serial(T.min(T.int64(bi), inputs - c * bi)):
                        for tap in T.serial(taps):
                            w[n * bo + v, c * bi + s, tap] = blocked[n, tap, c, s, v]

    return kernel


def all_forms(bi: int, bo: int) -> list[Any]:
    """Both directions in every form."""
    return [make(bi, bo, form) for make in (block_weights, unblock_weights) for form in FORMS]
