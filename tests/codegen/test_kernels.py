"""What operator tests cannot see: list building, thread independence, misaligned inputs."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dsgc.ops  # noqa: F401 - defines the operators
from dsgc.codegen import cpu_kernels
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.layout import Selection, by_block, selection
from dsgc.errors import UnsupportedError
from dsgc.ops import mask_to_selection

cpu_kernels()
LIBRARIES = Libraries(KernelCache())
OPS = torch.ops.dsgc_cpu


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def _mask(positions: int, blocks: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(positions, blocks, 1, 1, generator=generator) < 0.4


@given(
    positions=st.integers(0, 40),
    blocks=st.integers(1, 20),
    tile=st.integers(1, 50),
    area=st.integers(1, 9),
    seed=st.integers(0, 2**16),
)
def test_lists_hold_every_slot_once_sorted_by_tile_and_block(
    positions: int, blocks: int, tile: int, area: int, seed: int
) -> None:
    index, rowptr = mask_to_selection(_mask(positions, blocks, seed), bits=False)
    lists = by_block(LIBRARIES, Selection(index, rowptr), blocks, area, tile)
    expected = []
    for first in range(0, max(positions, 1), tile):
        for block in range(blocks):
            for p in range(first, min(first + tile, positions)):
                for slot in range(int(rowptr[p]), int(rowptr[p + 1])):
                    if int(index[slot]) == block:
                        expected.append((slot, p))
    found = (lists.slot.tolist(), (lists.sample * area + lists.pixel).tolist())
    assert list(zip(*found, strict=True)) == expected
    assert ((lists.pixel >= 0) & (lists.pixel < area)).all()
    assert int(lists.start[-1]) == len(expected)
    assert (lists.start.diff() >= 0).all()


@given(positions=st.integers(0, 30), channels=st.integers(1, 40), seed=st.integers(0, 2**16))
def test_bitmasks_expand_to_the_list_they_stand_for(
    positions: int, channels: int, seed: int
) -> None:
    mask = _mask(positions, channels, seed)
    bits, rowptr = mask_to_selection(mask, bits=True)
    wanted, _ = mask_to_selection(mask, bits=False)
    assert torch.equal(selection(LIBRARIES, bits, rowptr).ids, wanted)


def _convolution(offset: int = 0) -> tuple[torch.Tensor, ...]:
    """A packed convolution, forward and backward; ``offset`` floats misalign its input."""
    generator = torch.Generator().manual_seed(1)
    size, outputs = [48, 9, 9], 40
    index, rowptr = mask_to_selection(torch.rand(3, 3, 9, 9, generator=generator) < 0.5, False)
    target = mask_to_selection(torch.rand(3, 3, 9, 9, generator=generator) < 0.5, False)
    numbers = torch.randn(index.shape[0] * 16, generator=generator)
    storage = torch.cat([numbers.new_zeros(offset), numbers])
    values = storage[offset:].view(-1, 16)
    weight = torch.randn(outputs, 48, 3, 3, generator=generator)
    source = (values, index, rowptr, None, None, "relu", size)
    geometry = ([1, 1], [1, 1], [1, 1])
    y = OPS.conv2d(*source, weight, None, *target, 16, *geometry)
    grads = OPS.conv2d_backward(y, *source, weight, *target, 16, *geometry, True, True, True)
    return (y, *grads)


@pytest.mark.usefixtures("two_threads")
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    two = _convolution()
    torch.set_num_threads(1)
    one = _convolution()
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("offset", [1, 3, 7])
def test_misaligned_values_give_the_same_result(offset: int) -> None:
    for a, b in zip(_convolution(), _convolution(offset), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_float64_is_refused_with_a_way_out() -> None:
    x = torch.randn(1, 16, 4, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedError, match=r"float32.*backend=\"reference\""):
        OPS.activate(x, None, None, None, None, "relu", [16, 4, 4])
