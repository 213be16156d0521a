"""max_pool2d of dense maps that are still to be activated, against PyTorch's pooling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings

from tests.ops.cases import Namespace, Pooling, Source, compare, poolings

STEM = Pooling(
    Source(2, 20, 7, 6, 0, "affine_relu", 1.0, False, 1),
    mode="max", kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil_mode=False,
    count_include_pad=True,
)  # fmt: skip


@settings(max_examples=120)
@given(case=poolings((0,), ("max",)))
@example(case=STEM)
@example(case=replace(STEM, source=replace(STEM.source, channels=64, scatter=True)))
@example(case=replace(STEM, source=replace(STEM.source, batch=0)))
def test_it_is_the_pooling_of_the_activated_map(namespace: Namespace, case: Pooling) -> None:
    source, ops = case.source.build(namespace.dtype), namespace.ops
    y, argmax = ops.max_pool2d(*source.arguments(ops), *case.window)
    kernel, stride, padding, ceil_mode = case.window
    expected = F.max_pool2d(source.dense(), kernel, stride, padding, 1, ceil_mode)
    compare(namespace, y, expected, source.leaves)
    assert argmax.shape == y.shape
    assert argmax.dtype == torch.uint8
    assert y.is_contiguous(memory_format=torch.channels_last)


def _pool(namespace: Namespace, x: torch.Tensor, act: str = "identity") -> list[torch.Tensor]:
    arguments = (x.to(namespace.dtype), None, None, None, None, act, list(x.shape[1:]))
    found = namespace.ops.max_pool2d(*arguments, [3, 3], [2, 2], [1, 1], False)
    return [one.flatten().tolist() for one in found]


def test_the_first_of_equal_values_wins_and_taps_outside_never(namespace: Namespace) -> None:
    """Of a 2 x 2 map the one window has taps 4, 5, 7 and 8."""
    assert _pool(namespace, torch.tensor([[[[1.0, 2.0], [2.0, 0.0]]]])) == [[2.0], [5]]
    assert _pool(namespace, -torch.ones(1, 1, 2, 2), "relu") == [[0.0], [4]]
    lowest = torch.full((1, 1, 2, 2), float("-inf"))
    assert _pool(namespace, lowest) == [[float("-inf")], [4]]


def test_nan_wins_whatever_comes_before_and_after(namespace: Namespace) -> None:
    x = torch.tensor([[[[1.0, float("nan")], [2.0, 3.0]]]])
    values, taps = _pool(namespace, x)
    assert values[0] != values[0]
    assert taps == [5]


def test_what_cannot_be_pooled_is_refused(namespace: Namespace) -> None:
    index, rowptr = torch.zeros(4, dtype=torch.int32), torch.arange(5, dtype=torch.int32)
    packed = (torch.zeros(4, 8), index, rowptr, None, None, "identity", [8, 2, 2])
    with pytest.raises(ValueError, match="dense input only"):
        namespace.ops.max_pool2d(*packed, [2, 2], [2, 2], [0, 0], False)
    dense = (torch.zeros(1, 8, 20, 20), None, None, None, None, "identity", [8, 20, 20])
    with pytest.raises(ValueError, match="at most 254 taps"):
        namespace.ops.max_pool2d(*dense, [16, 16], [2, 2], [0, 0], False)
