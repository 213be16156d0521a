"""Asking for memory ahead of its use."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

FIRST_LEVEL, DATA = 3, 1  # how close to the core it should come; not instructions


def fetch(address: Any, write: bool = False) -> Any:
    """The call that brings the cache line at ``address`` into the first-level cache.

    It never faults, so the address may lie beyond the end of a buffer.
    """
    return T.call_llvm_intrin(
        "void",
        "llvm.prefetch",
        address,
        T.int32(int(write)),
        T.int32(FIRST_LEVEL),
        T.int32(DATA),
    )
