"""pool2d on packed activations against PyTorch's pooling of the dense tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from torch import Tensor

from dsgc.ops import expand_mask, selection_to_mask
from tests.ops.cases import Namespace, Pooling, Source, compare, poolings

OVERLAPPING = Pooling(
    Source(2, 20, 7, 6, 8, "relu_affine", 0.4, False, 1),
    mode="max", kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil_mode=True,
    count_include_pad=False,
)  # fmt: skip
MANY_BLOCKS = replace(OVERLAPPING, source=Source(1, 530, 4, 4, 8, "identity", 0.4, False, 1))


def _dense_pooling(case: Pooling, x: Tensor) -> Tensor:
    if case.mode == "max":
        kernel, stride, padding, ceil_mode = case.window
        return F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode)
    return F.avg_pool2d(x, *case.window, case.count_include_pad)


@settings(max_examples=120)
@given(case=poolings())
@example(case=OVERLAPPING)
@example(case=replace(OVERLAPPING, mode="avg"))
@example(case=MANY_BLOCKS)
def test_pool2d_is_the_pooling_of_the_dense_tensor(namespace: Namespace, case: Pooling) -> None:
    source, ops = case.source.build(namespace.dtype), namespace.ops
    values, index, rowptr, argmax = ops.pool2d(*source.arguments(ops), *case.arguments)
    size = [case.source.channels, *case.out_size]
    dense = ops.unpack(values, index, rowptr, None, None, "identity", size)
    compare(namespace, dense, _dense_pooling(case, source.dense()), source.leaves)
    assert source.mask is not None
    blocks = source.mask.shape[1]
    kernel, stride, padding, ceil_mode = case.window
    union = F.max_pool2d(source.mask.double(), kernel, stride, padding, 1, ceil_mode) > 0
    assert torch.equal(selection_to_mask(index, rowptr, blocks, *case.out_size), union)
    assert index.dtype == (torch.uint8 if case.source.block == 1 else torch.int32)
    assert argmax.shape == (values.shape if case.mode == "max" else (0,))


def test_argmax_is_the_tap_or_255(namespace: Namespace) -> None:
    """Two pixels selected of a 2 x 2 window: a positive maximum, and one below the zeros around."""
    x = torch.tensor([[[[-1.0, 5.0], [0.0, 0.0]]], [[[-1.0, -2.0], [0.0, 0.0]]]])
    x = x.to(namespace.dtype)
    mask = torch.tensor([[True, True], [False, False]]).expand(2, 1, 2, 2)
    case = Source(2, 1, 2, 2, 8, "identity", 0.0, False, 0).build(namespace.dtype)
    case.x, case.mask = x, mask
    window = ("max", (2, 2), (2, 2), (0, 0), False, True)
    values, _, rowptr, argmax = namespace.ops.pool2d(*case.arguments(namespace.ops), *window)
    assert values[:, 0].tolist() == [5.0, 0.0]
    assert argmax[:, 0].tolist() == [1, 255]
    assert rowptr.tolist() == [0, 1, 2]


def test_a_block_that_is_kept_nowhere_in_a_window_is_not_kept(namespace: Namespace) -> None:
    case = Source(2, 20, 4, 4, 8, "identity", 1.0, False, 0).build(namespace.dtype)
    mask = torch.zeros(2, 3, 4, 4, dtype=torch.bool)
    mask[0, 1, 0, 0] = mask[1, 2, 3, 1] = True
    case.mask = mask
    window = ("avg", (2, 2), (2, 2), (0, 0), False, True)
    _, index, rowptr, _ = namespace.ops.pool2d(*case.arguments(namespace.ops), *window)
    kept = selection_to_mask(index, rowptr, 3, 2, 2)
    assert kept.nonzero().tolist() == [[0, 1, 0, 0], [1, 2, 1, 0]]
    assert expand_mask(kept, 8, 20).sum() == 8 + 4


def test_what_cannot_be_pooled_is_refused() -> None:
    x = torch.zeros(1, 8, 20, 20)
    arguments = (x, None, None, None, None, "identity", [8, 20, 20])
    with pytest.raises(ValueError, match="packed input only"):
        torch.ops.dsgc.pool2d(*arguments, "max", [2, 2], [2, 2], [0, 0], False, True)
    index = torch.zeros(400, dtype=torch.int32)
    rowptr = torch.arange(401, dtype=torch.int32)
    packed = (torch.zeros(400, 8), index, rowptr, None, None, "identity", [8, 20, 20])
    with pytest.raises(ValueError, match="at most 254 taps"):
        torch.ops.dsgc.pool2d(*packed, "max", [16, 16], [2, 2], [0, 0], False, True)
    with pytest.raises(ValueError, match='"max" or "avg"'):
        torch.ops.dsgc.pool2d(*packed, "min", [2, 2], [2, 2], [0, 0], False, True)
