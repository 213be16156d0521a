"""Asking for memory ahead of its use."""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

FIRST_LEVEL, SECOND_LEVEL = 3, 2  # how close to the core it should come
DATA = 1  # not instructions


def fetch(address: Any, write: bool = False, level: int = FIRST_LEVEL) -> Any:
    """The call that brings the cache line at ``address`` into the first-level cache, or into the
    second.

    It never faults, so the address may lie beyond the end of a buffer.
    """
    return T.call_llvm_intrin(
        "void",
        "llvm.prefetch",
        address,
        T.int32(int(write)),
        T.int32(level),
        T.int32(DATA),
    )
