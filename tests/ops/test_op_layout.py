"""Selections in both forms, and the sizes of outputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dsgc.ops import (
    conv_output_size,
    expand_index,
    expand_mask,
    mask_to_selection,
    pool_output_size,
    selection_to_mask,
)
from dsgc.ops.layout import block_of

small = st.integers(1, 9)


@given(st.integers(0, 3), st.integers(1, 19), small, small, st.booleans(), st.integers(0, 99))
def test_a_selection_gives_its_mask_back(
    batch: int, blocks: int, height: int, width: int, bits: bool, seed: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, blocks, height, width, generator=make) > 0.6
    index, rowptr = mask_to_selection(mask, bits)
    assert torch.equal(selection_to_mask(index, rowptr, blocks, height, width), mask)
    assert rowptr.dtype == torch.int32
    assert rowptr.shape == (batch * height * width + 1,)
    assert int(rowptr[-1]) == int(mask.sum())
    listed, _ = mask_to_selection(mask, False)
    assert torch.equal(expand_index(index, rowptr), listed)
    assert listed.dtype == torch.int32


def test_bit_j_of_byte_i_is_block_8i_plus_j() -> None:
    mask = torch.zeros(1, 11, 1, 1, dtype=torch.bool)
    mask[0, [0, 3, 9]] = True
    index, rowptr = mask_to_selection(mask, True)
    assert index.tolist() == [[0b1001, 0b10]]
    assert rowptr.tolist() == [0, 3]


def test_expand_mask_cuts_the_tail() -> None:
    mask = torch.tensor([True, False, True]).view(1, 3, 1, 1)
    assert expand_mask(mask, 2, 5).flatten().tolist() == [True, True, False, False, True]


@pytest.mark.parametrize("channels", [1, 7, 8, 20, 33, 512])
@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_block_of_finds_the_block(channels: int, block: int) -> None:
    blocks = -(-channels // block)
    found = block_of(channels, blocks)
    assert found == block or blocks == -(-channels // found) == 1


@given(st.tuples(small, small), st.tuples(small, small), st.integers(1, 3), st.integers(0, 3),
       st.integers(1, 3))  # fmt: skip
def test_conv_output_size_is_pytorchs(
    size: tuple[int, int], kernel: tuple[int, int], stride: int, padding: int, dilation: int
) -> None:
    window = ((stride,) * 2, (padding,) * 2, (dilation,) * 2)
    x, w = torch.zeros(1, 1, *size), torch.zeros(1, 1, *kernel)
    try:
        expected = tuple(F.conv2d(x, w, None, *window).shape[2:])
    except RuntimeError:
        with pytest.raises(ValueError, match="does not fit"):
            conv_output_size(size, kernel, *window)
    else:
        assert conv_output_size(size, kernel, *window) == expected


@given(st.tuples(small, small), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2),
       st.booleans())  # fmt: skip
def test_pool_output_size_is_pytorchs(
    size: tuple[int, int], kernel: int, stride: int, padding: int, ceil_mode: bool
) -> None:
    window = ((kernel,) * 2, (stride,) * 2, (padding,) * 2, ceil_mode)
    try:
        pooled = F.max_pool2d(torch.zeros(1, 1, *size), kernel, stride, padding, 1, ceil_mode)
    except RuntimeError:
        with pytest.raises(ValueError, match="window"):
            pool_output_size(size, *window)
    else:
        assert pool_output_size(size, *window) == tuple(pooled.shape[2:])
