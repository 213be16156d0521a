"""Sizes that depend on the batch, as they are written and as the runtime reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsgc.programs.sizes import BATCH, Size, as_size, ceil_div, evaluate, product
from dsgc_runtime import DamagedArtifactError, sizes

numbers = st.integers(0, 50)
expressions: st.SearchStrategy[Size] = st.recursive(
    st.one_of(numbers.map(as_size), st.just(BATCH)),
    lambda inner: st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a * b, inner, numbers),
        st.builds(ceil_div, inner, st.integers(1, 9)),
    ),
    max_leaves=8,
)


@given(expressions, st.integers(0, 300))
def test_the_runtime_reads_what_was_written(size: Size, batch: int) -> None:
    known = {"batch": batch}
    assert sizes.evaluate(sizes.parse(size.json(), known), known) == evaluate(size, known)


def test_equal_sizes_look_equal() -> None:
    assert (BATCH * 3) * 4 == BATCH * 12
    assert 0 + BATCH * 1 == BATCH
    assert ceil_div(BATCH, 1) == BATCH
    assert product((2, 3, 4)) == Size(24)


@pytest.mark.parametrize(
    "given_size",
    [
        *(-1, True, 1.5, None, "other", [], ["+", 1], ["-", 1, 2], [[], 1, 2], ["ceil", 4, 0]),
        ["ceil", 4, "batch"],
        1 << 60,
        {"a": 1},
    ],
)
def test_what_is_no_size_is_refused(given_size: object) -> None:
    with pytest.raises(DamagedArtifactError, match="no size"):
        sizes.parse(given_size, {"batch"})


def test_absurd_sizes_are_refused_when_they_are_worked_out() -> None:
    size = sizes.parse(["*", ["*", "batch", 1 << 30], 1 << 30], {"batch"})
    with pytest.raises(DamagedArtifactError, match="beyond all bounds"):
        sizes.evaluate(size, {"batch": 7})


def test_deep_nesting_is_refused() -> None:
    size: object = 1
    for _ in range(100):
        size = ["+", size, 1]
    with pytest.raises(DamagedArtifactError):
        sizes.parse(size, set())
