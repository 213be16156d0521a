"""Sorting the pairs of a convolution between two selections.

A *pair* is a target slot and a source slot that a kernel tap brings together. All pairs of one tap,
target block and source block use the same weights, so the pairs of a tap are sorted into one bucket
a source block. ``members`` list entries of one target block are sorted at a time.

``bits[position, word]`` says which source blocks a position has: a bit each, 32 a word, the lowest
first. With ``room`` [3, span], bucket ``c`` is ``source[c * span .. end[c]]`` and the same part of
``member``: the pairs' slots.
"""

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from dsgc.codegen.kernels.prefetch import fetch
from dsgc.codegen.tiles import BITS, VECTOR

AHEAD = 8  # pairs before its turn that a row is fetched into the cache; buckets leave room for it
OFTEN = 7  # sorting by vectors pays where one block of so many is present


def whole_vectors(size: Any) -> Any:
    """``size`` as a multiple of the lanes that are sorted at a time."""
    return (size + (VECTOR - 1)) // VECTOR * VECTOR


def lowest(bits: Any) -> Any:
    """The place of the lowest bit of a uint32 that is not 0."""
    return T.call_llvm_pure_intrin("uint32", "llvm.cttz.i32", bits, T.bool(True))


def common(some: Any, others: Any) -> Any:
    """Where int32x16 have a bit in common."""
    return (some & others) != T.broadcast(T.int32(0), VECTOR)


def together(values: Any, lanes: Any) -> Any:
    """The chosen lanes of ``values`` int32x16 side by side, from the first on."""
    zero = T.broadcast(T.int32(0), VECTOR)
    name = "llvm.x86.avx512.mask.compress"
    return T.call_llvm_pure_intrin("int32x16", name, values, zero, lanes)


def how_many(lanes: Any) -> Any:
    """How many of 16 lanes are chosen."""
    name = "llvm.vector.reduce.add"
    return T.call_llvm_pure_intrin("int32", name, T.cast(lanes, "int32x16"))


@T.macro
def sort_one_by_one(  # type: ignore[no-untyped-def]  # a macro: its arguments are buffers and numbers
    x, bits, end, rowptr, slot, sample, pixel, table, area, tap, begin, members, source, member
):
    """Puts every pair in its bucket, one after the other, and fetches its row of ``x``."""
    for i in T.serial(members):
        near: T.let = table[tap, T.cast(pixel[begin + i], "int64")]
        if near >= 0:
            q: T.let = T.cast(sample[begin + i], "int64") * area + T.cast(near, "int64")
            at = T.alloc_scalar("int32")
            rest = T.alloc_scalar("uint32")
            at = rowptr[q]
            for word in T.serial(bits.shape[1]):
                rest = T.reinterpret("uint32", bits[q, word])
                while rest != T.uint32(0):
                    c: T.let = word * BITS + T.cast(lowest(rest), "int64")
                    place: T.let = T.cast(end[c], "int64")
                    source[place] = at
                    member[place] = slot[begin + i]
                    T.evaluate(fetch(T.address_of(x[T.cast(at, "int64"), 0])))
                    end[c] = end[c] + 1
                    at = at + 1
                    rest = rest & (rest - T.uint32(1))


@T.macro
def sort_by_vectors(  # type: ignore[no-untyped-def]
    bits, room, end, rowptr, slot, sample, pixel, table, area, tap, begin, members, source, member
):
    """The same for AVX-512, which moves the chosen lanes of a vector together: 16 members at a time
    are asked for one source block after the other. No branch depends on what was selected.

    ``room`` has for each member which of a word's blocks its neighbour has, the neighbour's slot of
    the next of them, and its own slot.
    """
    groups: T.let = (members + (VECTOR - 1)) // VECTOR
    for word in T.serial(bits.shape[1]):
        for i in T.serial(members):
            near: T.let = table[tap, T.cast(pixel[begin + i], "int64")]
            q: T.let = T.cast(sample[begin + i], "int64") * area + T.cast(T.max(near, 0), "int64")
            room[0, i] = T.Select(near >= 0, bits[q, word], 0)
            # The slots of later words follow on those of the earlier ones.
            room[1, i] = T.Select(word == 0, rowptr[q], room[1, i])
            room[2, i] = slot[begin + i]
        for i in T.serial(groups * VECTOR - members):
            room[0, members + i] = 0
        for group in T.serial(groups):
            has = T.alloc_buffer((VECTOR,), "int32")
            at = T.alloc_buffer((VECTOR,), "int32")
            now = T.alloc_buffer((VECTOR,), "int32")
            for v in T.vectorized(VECTOR):
                now[v] = 1
            for v in T.vectorized(VECTOR):
                has[v] = room[0, group * VECTOR + v]
            for v in T.vectorized(VECTOR):
                at[v] = room[1, group * VECTOR + v]
            for bit in T.serial(T.min(end.shape[0] - word * BITS, T.int64(BITS))):
                c: T.let = word * BITS + bit
                place: T.let = T.cast(end[c], "int64")
                # What is written beyond the chosen is overwritten by the next group, or never read.
                source[T.ramp(place, 1, VECTOR)] = together(
                    at[T.ramp(0, 1, VECTOR)],
                    common(has[T.ramp(0, 1, VECTOR)], now[T.ramp(0, 1, VECTOR)]),
                )
                member[T.ramp(place, 1, VECTOR)] = together(
                    room[2, T.ramp(group * VECTOR, 1, VECTOR)],
                    common(has[T.ramp(0, 1, VECTOR)], now[T.ramp(0, 1, VECTOR)]),
                )
                end[c] = end[c] + how_many(
                    common(has[T.ramp(0, 1, VECTOR)], now[T.ramp(0, 1, VECTOR)])
                )
                at[T.ramp(0, 1, VECTOR)] = at[T.ramp(0, 1, VECTOR)] + T.cast(
                    common(has[T.ramp(0, 1, VECTOR)], now[T.ramp(0, 1, VECTOR)]), "int32x16"
                )
                for v in T.vectorized(VECTOR):
                    now[v] = T.shift_left(now[v], 1)
            for v in T.vectorized(VECTOR):
                room[1, group * VECTOR + v] = at[v]


@T.macro
def sort_pairs(by_vectors, x, bits, room, end, *others):  # type: ignore[no-untyped-def]
    """Sorts in the way that is faster: ``by_vectors`` says whether the target can do so.

    ``others`` are what both ways take besides.
    """
    for c in T.serial(end.shape[0]):
        end[c] = T.cast(c * room.shape[1], "int32")
    if by_vectors and x.shape[0] * OFTEN >= bits.shape[0] * end.shape[0]:
        sort_by_vectors(bits, room, end, *others)
    else:
        sort_one_by_one(x, bits, end, *others)
