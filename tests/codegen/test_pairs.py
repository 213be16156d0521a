"""Sorting the pairs of two selections: any number of source blocks, any chunk, any density."""

import torch
from hypothesis import example, given
from hypothesis import strategies as st

import dsgc.ops  # noqa: F401 - defines the operators
from dsgc.codegen import families
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.convolution import conv2d
from dsgc.codegen.cpu.layout import Geometry, Selection, blocks_of, by_block, marked_blocks
from dsgc.codegen.cpu.weights import blocked_weight, plain_weight
from dsgc.ops import mask_to_selection

LIBRARIES = Libraries(KernelCache())
BLOCK, BATCH, SIDE, OUTPUTS = 8, 2, 5, 24
WINDOW = ([1, 1], [1, 1], [1, 1])  # stride, padding, dilation


@given(
    positions=st.integers(0, 40),
    blocks=st.integers(1, 100),
    density=st.floats(0, 1),
    seed=st.integers(0, 2**16),
)
def test_marked_blocks_have_a_bit_each(
    positions: int, blocks: int, density: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(positions, blocks, 1, 1, generator=generator) < density
    chosen = Selection(*mask_to_selection(mask, bits=False))
    marked = marked_blocks(LIBRARIES, chosen, blocks)
    bits = (marked.unsqueeze(2) >> torch.arange(32)) & 1
    assert torch.equal(bits.flatten(1)[:, :blocks].bool(), mask[:, :, 0, 0])
    assert not bits.flatten(1)[:, blocks:].any()


@example(blocks=32, density=1.0, size=16, seed=0)  # the last bit of a word is the sign
@example(blocks=70, density=0.5, size=7, seed=0)
@example(blocks=33, density=0.05, size=1000, seed=0)
@given(
    blocks=st.integers(1, 70),
    density=st.sampled_from([0.02, 0.1, 0.2, 0.6, 1.0]),
    size=st.sampled_from([1, 7, 16, 48, 256, 1000]),
    seed=st.integers(0, 2**16),
)
def test_packed_kernels_find_every_pair(blocks: int, density: float, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    channels = blocks * BLOCK

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    present = torch.rand(BATCH, blocks, SIDE, SIDE, generator=generator) < density
    wanted = torch.rand(BATCH, OUTPUTS // BLOCK, SIDE, SIDE, generator=generator) < 0.7
    source = Selection(*mask_to_selection(present, bits=False))
    target = Selection(*mask_to_selection(wanted, bits=False))
    x, dy = some(source.ids.shape[0], BLOCK), some(target.ids.shape[0], BLOCK)
    weight, bias = some(OUTPUTS, channels, 3, 3), some(OUTPUTS)
    operands = (x, *source, None, None, "identity", [channels, SIDE, SIDE], weight)
    meant = torch.ops.dsgc.conv2d(*operands, bias, *target, BLOCK, *WINDOW)
    backward = (dy, *operands, *target, BLOCK, *WINDOW, False, True, False)
    meant_gradient = torch.ops.dsgc.conv2d_backward(*backward)[3]

    geometry = Geometry.forward((SIDE, SIDE), (SIDE, SIDE), (3, 3), *WINDOW)
    lists = by_block(LIBRARIES, target, OUTPUTS // BLOCK, SIDE * SIDE)
    read = (marked_blocks(LIBRARIES, source, blocks), source.rowptr)
    where = (geometry.table(), SIDE * SIDE, size)
    family = families.convolution(BLOCK, BLOCK)
    blocked = blocked_weight(LIBRARIES, weight, BLOCK, BLOCK)
    y, gradient = torch.full_like(meant, torch.nan), torch.full_like(blocked, torch.nan)
    LIBRARIES(family, f"packed_convolution_{BLOCK}_{BLOCK}")(
        x, *read, blocked, blocks_of(bias, OUTPUTS, BLOCK), *lists, y, *where
    )
    LIBRARIES(family, f"packed_weight_gradient_{BLOCK}_{BLOCK}")(
        x, *read, dy, *lists, gradient, *where
    )
    torch.testing.assert_close(y, meant, rtol=1e-4, atol=1e-3)
    # Its vectors are of inputs: blocks of the transposed weight.
    found = plain_weight(LIBRARIES, gradient.transpose(0, 2).contiguous(), weight.transpose(0, 1))
    found = found.transpose(0, 1)
    torch.testing.assert_close(found, meant_gradient, rtol=1e-4, atol=1e-3)


def test_either_way_of_sorting_gives_the_same_bits() -> None:
    """Which is taken depends on the whole batch; a sample's results must not."""
    generator = torch.Generator().manual_seed(0)
    size = [128, 6, 6]
    density = torch.tensor([0.1, 1.0]).view(2, 1, 1, 1)
    mask = torch.rand(2, 16, 6, 6, generator=generator) < density
    wanted = torch.rand(2, 4, 6, 6, generator=generator) < 0.5
    values = torch.randn(2, *size, generator=generator)
    weight = torch.randn(64, 128, 3, 3, generator=generator)

    def convolve(samples: slice) -> torch.Tensor:
        index, rowptr = mask_to_selection(mask[samples], bits=False)
        x = torch.ops.dsgc.pack(values[samples], index, rowptr, BLOCK)
        target = mask_to_selection(wanted[samples], bits=False)
        source = (x, index, rowptr, None, None, "identity", size)
        return conv2d(LIBRARIES, *source, weight, None, *target, 16, *WINDOW)

    alone, together = convolve(slice(0, 1)), convolve(slice(0, 2))
    assert torch.equal(alone, together[: alone.shape[0]])
