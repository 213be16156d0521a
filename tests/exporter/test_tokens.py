"""Maps with channels last, and tokens [N, T, C], in programs: linear layers, layer norms, sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import dsgc
from dsgc.programs.live import LiveProgram
from tests.exporter.networks import assert_all_agree, assert_program_agrees


class Blocks(nn.Module):
    """Layers of a network with channels last, which `way` puts together."""

    def __init__(self, way: Callable[[Any, Any], Any], channels: int = 20) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.plain_norm = nn.LayerNorm(channels, elementwise_affine=False)
        self.expand = nn.Linear(channels, 3 * channels)
        self.reduce = nn.Linear(3 * channels, channels, bias=False)
        self.gain = nn.Parameter(torch.randn(channels))
        self.dropout = nn.Dropout(0.5)
        self.pixels = nn.Linear(6, 6)
        self.whole = nn.LayerNorm((channels, 5, 6))
        self.way = way
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x: Tensor) -> Any:
        return self.way(self, x)


def mixed(m: Any, x: Any) -> Any:
    return m.reduce(m.dropout(F.gelu(m.expand(m.norm(x)))))


def convnext(m: Any, x: Any) -> Any:
    y = m.depthwise(x).permute(0, 2, 3, 1)
    return x + (m.gain * mixed(m, y)).permute(0, 3, 1, 2)


def tokens(m: Any, x: Any) -> Any:
    y = x.flatten(2).transpose(1, 2)
    y = y + mixed(m, y)
    y = y - 0.5 * F.relu(m.plain_norm(y))
    return m.norm(y).mean(1)


def normed(m: Any, x: Any) -> Any:
    y = F.layer_norm(x.permute(0, 2, 3, 1), (20,), m.norm.weight, m.norm.bias, m.norm.eps)
    return y.permute(0, 3, 1, 2)


WAYS: dict[str, Callable[[Any, Any], Any]] = {
    "ConvNeXt": convnext,
    "tokens": tokens,
    "a norm of maps": normed,
    "some tokens": lambda m, x: m.norm(x.flatten(2).transpose(1, 2)[:, 3:7])[:, 1],
    "a token": lambda m, x: m.expand(x.flatten(2).transpose(1, 2))[:, 4],
    "back to maps": lambda m, x: torch.unflatten(
        m.norm(x.flatten(2).transpose(1, 2)).transpose(1, 2), 2, (6, 5)
    ),
    "matrices": lambda m, x: (
        m.reduce(m.expand(m.norm(x.mean((2, 3))))) + m.plain_norm(x[..., 1, 2])
    ),
    "one token": lambda m, x: m.norm(m.reduce(m.expand(x.mean((2, 3)).unsqueeze(1)))).squeeze(1),
}


@pytest.mark.parametrize("way", WAYS)
def test_channels_last_agree(way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 20, 5, 6)
    assert_program_agrees(Blocks(WAYS[way]), x)
    assert_program_agrees(Blocks(WAYS[way]), x[:1])


@settings(max_examples=25)
@given(
    channels=st.integers(2, 40),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    samples=st.integers(1, 3),
)
def test_convnext_blocks_of_any_size_agree(
    channels: int, size: tuple[int, int], samples: int
) -> None:
    torch.manual_seed(0)
    assert_program_agrees(Blocks(convnext, channels), torch.randn(samples, channels, *size))


def test_an_artifact_holds_channels_last(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 20, 1), Blocks(convnext)),
        *(nn.ReLU(), nn.Conv2d(20, 32, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        *(nn.LayerNorm(32), nn.Linear(32, 5)),
    )
    config = dsgc.SparsityConfig(0.5, rules={"2": 0.5, "5": 0.5}, block=8)
    sparse = dsgc.compile(model, config=config).eval()
    x = torch.randn(3, 3, 7, 8)
    assert_all_agree(sparse, tmp_path, x)


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "linear over pixels": (lambda m, x: m.pixels(x), "Linear"),
    "linear over tokens": (lambda m, x: m.pixels(x.permute(0, 1, 3, 2)[..., :6]), "Linear"),
    "a norm of all": (lambda m, x: m.whole(x), "LayerNorm"),
    "two orders": (lambda m, x: F.relu(x.permute(0, 2, 3, 1)) + x.permute(0, 3, 2, 1), "add"),
    "a gain by column": (lambda m, x: x.permute(0, 2, 3, 1) * m.gain[:5, None, None], "mul"),
    "softmax of tokens": (lambda m, x: x.flatten(2).transpose(1, 2).softmax(-1), "softmax"),
    "filled up": (lambda m, x: F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1)) + 1.0, "add"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_row_is_refused(name: str) -> None:
    way, kind = REFUSED[name]
    x = torch.randn(2, 20, 5, 6 if "norm" in name or "pixels" in name else 5)
    model = Blocks(way)
    if name == "linear over tokens":
        model.pixels = nn.Linear(5, 5)
    with pytest.raises(dsgc.ExportError, match=f"is a {kind}"):
        LiveProgram(fx.symbolic_trace(model.eval()), [x], [])
