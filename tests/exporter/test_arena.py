"""Buffers that live at the same time never overlap, and others share memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsgc_runtime.arena import ALIGNMENT, plan

spans = st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 20)).map(
    lambda t: (t[0], min(t[1:]), max(t[1:]))
)


@given(st.lists(spans, max_size=30))
def test_living_buffers_do_not_overlap(needed: list[tuple[int, int, int]]) -> None:
    offsets, total = plan(needed)
    for i, (size, first, last) in enumerate(needed):
        assert offsets[i] % ALIGNMENT == 0
        assert offsets[i] + size <= total
        for j, (other, begin, end) in enumerate(needed[:i]):
            if begin <= last and first <= end and size and other:
                assert offsets[i] >= offsets[j] + other or offsets[j] >= offsets[i] + size


def test_a_chain_takes_as_much_as_its_two_largest_neighbours() -> None:
    needed = [(1024, i, i + 1) for i in range(20)]
    assert plan(needed)[1] == 2048


def test_nothing_takes_nothing() -> None:
    assert plan([]) == ([], 0)
