"""Maps that become larger between pixels: bilinear interpolation and transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsgc
from tests.exporter.networks import assert_all_agree, assert_program_agrees, make_sparse

PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=40)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.integers(1, 36),
    wanted=st.one_of(
        st.fixed_dictionaries({"size": st.tuples(st.integers(1, 20), st.integers(1, 20))}),
        st.fixed_dictionaries({"scale_factor": st.sampled_from([1.0, 1.3, 2.0, 2.5, 3.0])}),
        st.fixed_dictionaries(
            {"scale_factor": st.just(1.7), "recompute_scale_factor": st.booleans()}
        ),
    ),
    corners=st.booleans(),
    samples=st.integers(1, 3),
)
def test_bilinear_maps_agree(
    size: tuple[int, int], channels: int, wanted: dict[str, Any], corners: bool, samples: int
) -> None:
    torch.manual_seed(0)
    up = nn.Upsample(mode="bilinear", align_corners=corners, **wanted)
    assert_program_agrees(nn.Sequential(up), torch.randn(samples, channels, *size))


@settings(max_examples=60)
@given(
    channels=st.tuples(st.integers(1, 20), st.integers(1, 36)),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    kernel=PAIRS,
    stride=PAIRS,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=PAIRS,
    bias=st.booleans(),
    more=st.booleans(),
    samples=st.integers(1, 3),
)
@example((16, 16), (3, 4), (2, 2), (2, 2), (0, 0), (1, 1), True, False, 1)
@example((3, 20), (3, 4), (4, 4), (2, 2), (1, 1), (1, 1), False, False, 2)
@example((8, 5), (3, 4), (1, 2), (3, 3), (0, 0), (1, 1), True, True, 1)
def test_transposed_convolutions_agree(
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    bias: bool,
    more: bool,
    samples: int,
) -> None:
    torch.manual_seed(0)
    output_padding = (int(more and stride[0] > 1), int(more and stride[1] > 1))
    window = (kernel, stride, padding, output_padding)
    conv = nn.ConvTranspose2d(*channels, *window, bias=bias, dilation=dilation)
    x = torch.randn(samples, channels[0], *size)
    extents = [
        (size[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1
        for i in range(2)
    ]
    assume(min(extents) > 0)  # something is left of so small a map
    assert_program_agrees(nn.Sequential(conv), x)


UPWARD: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "transposed": lambda m, low, high: m.up(low),
    "transposed, with a norm": lambda m, low, high: F.relu(m.norm(m.up(low))),
    "module": lambda m, low, high: m.twice(low),
    "size of another": lambda m, low, high: F.interpolate(
        low, size=high.shape[2:], mode="bilinear", align_corners=False
    ),
    "corners": lambda m, low, high: F.interpolate(
        low, size=(10, 12), mode="bilinear", align_corners=True
    ),
    "scale factor": lambda m, low, high: F.interpolate(low, scale_factor=(2, 2), mode="bilinear"),
}


class SmallUNet(nn.Module):
    """Down, up again, and both side by side."""

    def __init__(self, upward: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.down = nn.Conv2d(16, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 32, 2, stride=2)
        self.norm = nn.BatchNorm2d(32)
        self.twice = nn.UpsamplingBilinear2d(scale_factor=2)
        self.both = nn.Conv2d(48, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 2, 1)
        self.upward = upward

    def forward(self, x: Tensor) -> Tensor:
        high = F.relu(self.first(x))
        low = F.relu(self.down(F.max_pool2d(high, 2)))
        both = torch.cat((self.upward(self, low, high), high), 1)
        return cast(Tensor, self.last(F.relu(self.both(both))))


@pytest.mark.parametrize("upward", UPWARD)
def test_networks_that_go_up_again_agree(upward: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sparse = make_sparse(SmallUNet(UPWARD[upward]))
    x = torch.randn(3, 3, 10, 12)
    assert_all_agree(sparse, tmp_path, x)


@pytest.mark.parametrize("kind", ["groups", "a size at the call"])
def test_other_transposed_convolutions_are_named(kind: str, tmp_path: Path) -> None:
    class Upward(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 16, 3, padding=1)
            self.second = nn.Conv2d(16, 16, 3, padding=1)
            self.up = nn.ConvTranspose2d(16, 16, 2, 2, groups=4 if kind == "groups" else 1)
            self.last = nn.Conv2d(16, 7, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(self.first(x))
            up = self.up(x) if kind == "groups" else self.up(x, output_size=[11, 13])
            return cast(Tensor, self.last(up))

    sparse = make_sparse(Upward())
    with pytest.raises(dsgc.ExportError, match=r"'up'.* is a ConvTranspose2d"):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, 3, 5, 6))
