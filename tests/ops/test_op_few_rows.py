"""Linear layers of few rows: kernels that read weights as they are stored, the same results."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsgc.codegen.cpu.layout import Geometry, Selection
from dsgc.codegen.cpu.linear import is_few_rows
from dsgc.codegen.cpu.linear_pairs import takes_pairs
from dsgc.codegen.tiles import FEW_ROWS
from dsgc.ops import mask_to_selection
from dsgc.ops.spec import Activation
from tests.ops.cases import Namespace

GEOMETRY = ([1, 1], [0, 0], [1, 1])


class Case(NamedTuple):
    """A linear layer after a flattened map [channels, *area]; `bi` 0: the map is dense."""

    samples: int
    channels: int
    area: tuple[int, int]
    blocks: int
    bi: int
    bo: int
    density: float
    chosen: float
    act: str
    seed: int

    def suits(self) -> bool:
        weight = torch.empty(self.blocks * self.bo, self.channels, *self.area)
        rowptr = torch.zeros(self.samples + 1, dtype=torch.int32)
        target = Selection(torch.empty(0, dtype=torch.int32), rowptr)
        where = Geometry.forward(self.area, (1, 1), self.area, *GEOMETRY)
        return is_few_rows(weight, target, self.bo, where)

    def select(self, density: float, blocks: int, *area: int) -> tuple[Tensor, Tensor]:
        kept = torch.rand(self.samples, blocks, *area) < density
        return mask_to_selection(kept, bits=False)


def cases() -> st.SearchStrategy[Case]:
    return st.builds(
        Case,
        samples=st.integers(1, 40) | st.integers(90, 200),  # a chunk has 96
        channels=st.integers(1, 12).map(lambda n: 16 * n) | st.sampled_from([256, 272, 576]),
        area=st.just((1, 1)) | st.sampled_from([(2, 2), (1, 3)]),
        blocks=st.integers(1, 6),
        bi=st.sampled_from([0, 1, 8, 16, 32]),
        bo=st.sampled_from([1, 8, 16, 32]),
        density=st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]),
        chosen=st.sampled_from([0.0, 0.2, 0.5, 1.0]),
        act=st.sampled_from(["identity", "relu", "affine_relu", "relu_affine"]),
        seed=st.integers(0, 1000),
    )


@given(cases())
def test_agreement(case: Case) -> None:
    torch.manual_seed(case.seed)
    assert case.suits()
    cpu, meant = Namespace.named("dsgc_cpu").ops, torch.ops.dsgc
    size = [case.channels, *case.area]
    packed: tuple[Tensor | None, Tensor | None] = (None, None)
    values = torch.randn(case.samples, *size)
    if case.bi:
        packed = case.select(case.density, -(-case.channels // case.bi), *case.area)
        values = meant.pack(values, *packed, case.bi)
    affine = "affine" in case.act
    scale = torch.rand(case.channels) + 0.5 if affine else None
    shift = torch.randn(case.channels) if affine else None
    source = (values, *packed, scale, shift, case.act, size)
    outputs = case.blocks * case.bo
    weight, bias = torch.randn(outputs, *size), torch.randn(outputs)
    chosen = case.select(case.chosen, case.blocks, 1, 1)
    y = meant.conv2d(*source, weight, bias, *chosen, case.bo, *GEOMETRY)
    found = cpu.conv2d(*source, weight, bias, *chosen, case.bo, *GEOMETRY)
    torch.testing.assert_close(found, y, rtol=1e-4, atol=1e-3)
    backward = (torch.randn_like(y), *source, weight, *chosen, case.bo, *GEOMETRY, True, True, True)
    for one, other in zip(
        cpu.conv2d_backward(*backward), meant.conv2d_backward(*backward), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(
    ("channels", "area", "bi", "bo", "density", "pairs"),
    [
        (64, (1, 1), 16, 16, 0.25, True),
        (64, (1, 1), 8, 32, 0.25, True),
        (64, (1, 1), 16, 16, 0.5, False),
        (64, (2, 2), 16, 16, 0.25, False),
        (48, (1, 1), 32, 16, 0.25, False),
        (64, (1, 1), 1, 16, 0.25, False),
        (64, (1, 1), 16, 1, 0.25, False),
    ],
)
def test_hardly_present_inputs_meet_outputs_in_pairs(
    channels: int, area: tuple[int, int], bi: int, bo: int, density: float, pairs: bool
) -> None:
    blocks, positions = -(-channels // bi), 8 * area[0] * area[1]
    values = torch.zeros(int(density * blocks * positions), bi)
    index = torch.zeros(len(values), dtype=torch.int32)
    rowptr = torch.zeros(positions + 1, dtype=torch.int32)
    source = Activation(values, index, rowptr, None, None, "identity", (channels, *area))
    assert takes_pairs(source, bo) == pairs


def test_infinite_weights_of_absent_inputs_are_not_read() -> None:
    index, rowptr = mask_to_selection(torch.tensor([[True, False, False]]).view(1, 3, 1, 1), False)
    size, weight = [48, 1, 1], torch.ones(32, 48, 1, 1)
    weight[:, 16:] = float("inf")
    source = (torch.ones(1, 16), index, rowptr, None, None, "identity", size)
    both = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0, 2], dtype=torch.int32)
    y = Namespace.named("dsgc_cpu").ops.conv2d(*source, weight, None, *both, 16, *GEOMETRY)
    assert torch.equal(y, torch.full((2, 16), 16.0))


@pytest.mark.parametrize(
    ("samples", "channels", "outputs", "block", "few"),
    [
        (FEW_ROWS, 32, 64, 16, True),
        (FEW_ROWS + 1, 32, 64, 16, False),
        (0, 32, 64, 16, False),
        (4, 24, 64, 16, False),
        (4, 32, 72, 16, False),
        (4, 32, 64, 1, True),
    ],
)
def test_others_take_blocked_weights(
    samples: int, channels: int, outputs: int, block: int, few: bool
) -> None:
    rowptr = torch.zeros(samples + 1, dtype=torch.int32)
    target = Selection(torch.empty(0, dtype=torch.int32), rowptr)
    where = Geometry.forward((1, 1), (1, 1), (1, 1), *GEOMETRY)
    weight = torch.empty(outputs, channels, 1, 1)
    assert is_few_rows(weight, target, block, where) == few
    strided = torch.empty(channels, outputs, 1, 1).transpose(0, 1)
    assert not is_few_rows(strided, target, block, where)
