"""residual_add against dense PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsgc.ops import mask_to_selection
from tests.ops.cases import Namespace, Source, compare, scattered, sources


@settings(max_examples=100)
@given(source=sources((0, 1, 4, 8, 16)), relu=st.booleans(), data=st.data())
def test_it_is_a_sum(namespace: Namespace, source: Source, relu: bool, data: st.DataObject) -> None:
    case, ops = source.build(namespace.dtype), namespace.ops
    shortcut = torch.randn(source.batch, *case.size, dtype=namespace.dtype)
    if data.draw(st.booleans()):
        shortcut = scattered(shortcut)
    shortcut.requires_grad_()
    found = ops.residual_add(*case.arguments(ops), shortcut, relu)
    assert found.is_contiguous(memory_format=torch.channels_last)
    expected = case.dense() + shortcut
    compare(namespace, found, expected.relu() if relu else expected, [*case.leaves, shortcut])


def test_numbers_that_are_none_pass_through(namespace: Namespace) -> None:
    nan = float("nan")
    selection = mask_to_selection(torch.tensor([True, False]).view(1, 2, 1, 1), False)
    x = torch.tensor([[nan, 1.0, -3.0, 1.0]], dtype=namespace.dtype)
    shortcut = torch.tensor([1.0, nan, 1.0, -2.0, nan, 5.0, -5.0, 0.0], dtype=namespace.dtype)
    arguments = (x, *selection, None, None, "identity", [8, 1, 1], shortcut.view(1, 8, 1, 1))
    y = namespace.ops.residual_add(*arguments, True)
    expected = torch.tensor([nan, nan, 0.0, 0.0, nan, 5.0, 0.0, 0.0], dtype=namespace.dtype)
    torch.testing.assert_close(y.flatten(), expected, equal_nan=True)
    *_, inner = namespace.ops.residual_add_backward(torch.ones_like(y), *arguments[:7], y)
    assert inner.flatten().tolist() == [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def test_shortcuts_of_other_sizes_are_refused(namespace: Namespace) -> None:
    case = Source(2, 8, 3, 3, 8, "identity", 1.0, False, 0).build(namespace.dtype)
    shortcut = torch.zeros(2, 8, 1, 1, dtype=namespace.dtype)
    with pytest.raises(ValueError, match=r"shortcut of \(2, 8, 1, 1\) .* maps of \(8, 3, 3\)"):
        namespace.ops.residual_add(*case.arguments(namespace.ops), shortcut, False)
