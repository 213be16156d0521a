"""Convolutions in groups, and channels that are shuffled between them, in programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsgc
from tests.exporter.networks import assert_all_agree, assert_program_agrees, make_sparse


@settings(max_examples=40)
@given(
    groups=st.integers(2, 40),
    inputs=st.integers(1, 20),
    outputs=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, (3, 1), 2]),
    padding=st.integers(0, 1),
    stride=st.sampled_from([1, 2, (2, 1)]),
    bias=st.booleans(),
    samples=st.integers(1, 3),
)
@example(groups=32, inputs=4, outputs=4, kernel=3, padding=1, stride=1, bias=False, samples=2)
@example(groups=2, inputs=64, outputs=64, kernel=1, padding=0, stride=1, bias=True, samples=1)
@example(groups=3, inputs=1, outputs=7, kernel=3, padding=1, stride=1, bias=True, samples=1)
def test_any_groups_agree(
    groups: int,
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    padding: int,
    stride: int | tuple[int, int],
    bias: bool,
    samples: int,
) -> None:
    torch.manual_seed(0)
    sizes = (groups * inputs, groups * outputs)
    conv = nn.Conv2d(*sizes, kernel, stride, padding, groups=groups, bias=bias)
    assert_program_agrees(nn.Sequential(conv), torch.randn(samples, sizes[0], 5, 7))


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


SHUFFLES: dict[str, Callable[[Tensor], Tensor]] = {
    "view and transpose": shuffled,
    "reshape and permute": lambda x: (
        x.reshape(x.size(0), 2, -1, x.size(2), x.size(3)).permute(0, 2, 1, 3, 4).flatten(1, 2)
    ),
    "unflatten": lambda x: torch.unflatten(x, 1, (8, 4)).swapaxes(1, 2).flatten(1, 2),
    "function": lambda x: F.channel_shuffle(x, 8),
    "module": nn.ChannelShuffle(2),
    "to pixels": lambda x: torch.cat((F.pixel_shuffle(x, 2),) * 4, 1)[:, :, ::2, ::2],
    "there and back": lambda x: x.permute(0, 2, 3, 1)[:, 1:].permute(0, 3, 1, 2),
    "pixels as a vector": lambda x: torch.unflatten(x.flatten(2)[:, :, 3:], 2, (-1, 1)),
}


class Grouped(nn.Module):
    """As in ResNeXt and ShuffleNet: convolutions in groups between sparse ones."""

    def __init__(self, shuffle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.before = nn.Conv2d(32, 32, 1)
        self.grouped = nn.Conv2d(32, 32, 3, 2, 1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.several = nn.Conv2d(32, 64, 3, padding=1, groups=32)
        self.after = nn.Conv2d(64, 32, 1)
        self.last = nn.Conv2d(32, 7, 1)
        self.shuffle = shuffle

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.before(F.relu(self.first(x))))
        x = self.shuffle(F.relu(self.norm(self.grouped(x))))
        x = F.relu(self.after(self.several(x)))
        return cast(Tensor, self.last(x).mean((2, 3)))


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_grouped_networks_agree(shuffle: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sparse = make_sparse(Grouped(SHUFFLES[shuffle]))
    x = torch.randn(3, 3, 9, 11)
    assert_all_agree(sparse, tmp_path, x)


SHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last as a result": lambda x: x.permute(0, 2, 3, 1),
    "samples in groups": lambda x: x.reshape(x.size(0) // 3, 3, 16, 5, 6).sum(1),
    "channels and pixels mixed": lambda x: F.relu(x.permute(0, 2, 3, 1)),
    "samples as channels": lambda x: F.relu(x.transpose(0, 1)),
}


@pytest.mark.parametrize("shape", SHAPED)
def test_other_shapes_are_refused(shape: str, tmp_path: Path) -> None:
    class Shaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3, padding=1)
            self.second = nn.Conv2d(16, 16, 3, padding=1)
            self.third = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return SHAPED[shape](self.third(self.second(self.first(x))))

    sparse = make_sparse(Shaped())
    with pytest.raises(dsgc.ExportError):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(3, 3, 5, 6))
    assert list(tmp_path.iterdir()) == []
