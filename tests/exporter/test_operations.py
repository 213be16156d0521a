"""Arithmetic, and operations that move values, in artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
import dsgc_runtime

X = torch.randn(3, 16, 6, 7, generator=torch.Generator().manual_seed(0))


class Around(nn.Module):
    """Two sparse convolutions with `between` in the middle, and a matrix at the end."""

    def __init__(self, between: Callable[[Any, Any], Any], channels: int = 32) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.squeeze = nn.Conv2d(32, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, 2, 1, groups=32)
        self.gain = nn.Parameter(torch.rand(32, 1, 1) + 0.5)
        self.pads = nn.ModuleList(
            [nn.ReflectionPad2d(1), nn.ZeroPad2d((1, 0, 2, 1)), nn.Upsample(scale_factor=2)]
        )
        self.second = nn.Conv2d(channels, 32, 3, padding=1)
        self.norm = nn.BatchNorm1d(32)
        self.unflatten = nn.Unflatten(1, (32, 1, 1))
        self.head = nn.Linear(32, 8)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, F.relu(self.first(x)))
        x = self.head(F.relu(self.second(x)).mean((2, 3)))
        return (1.0 - 2.0 * x[:, 2:]) / 3.0


def gated(m: Any, x: Any) -> Any:
    return x * torch.sigmoid(m.squeeze(x.mean((2, 3), keepdim=True)))


def shuffled(m: Any, x: Any) -> Any:
    one, other = x.chunk(2, 1)
    return torch.cat((other, one), 1)


HELD: dict[str, tuple[Callable[[Any, Any], Any], int]] = {
    "gate": (gated, 32),
    "gate first": (lambda m, x: torch.sigmoid(x.mean((2, 3), keepdim=True)) * x, 32),
    "less its mean": (lambda m, x: x - x.mean((2, 3), keepdim=True), 32),
    "a mean added": (lambda m, x: x.mean((2, 3), keepdim=True) + x, 32),
    "product": (lambda m, x: x * m.squeeze(x), 32),
    "difference": (lambda m, x: torch.sub(x, m.squeeze(x), alpha=0.5), 32),
    "sum": (lambda m, x: torch.add(x, m.squeeze(x), alpha=2), 32),
    "numbers": (lambda m, x: -(3 - x) * 0.5 + 1 / torch.tensor(4.0) - 2, 32),
    "a gain": (lambda m, x: m.gain * x / (m.gain + 1.0), 32),
    "depthwise": (lambda m, x: m.depthwise(x), 32),
    "halves": (shuffled, 32),
    "split": (lambda m, x: x.split([8, 24], 1)[1], 24),
    "some channels": (lambda m, x: x[:, 5:22], 17),
    "a region": (lambda m, x: x[:, :, 1:-1, 2:], 32),
    "narrow": (lambda m, x: x.narrow(2, 1, 3), 32),
    "mirrored": (lambda m, x: x.flip(3).roll(2, 2), 32),
    "on its side": (lambda m, x: x.transpose(2, 3), 32),
    "padded": (lambda m, x: F.pad(x, (1, 2, 0, 1)), 32),
    "replicated": (lambda m, x: F.pad(x, (1, 2, 0, 1), mode="replicate"), 32),
    "channels padded": (lambda m, x: F.pad(x, (0, 0, 0, 0, 3, 5)), 40),
    "modules": (lambda m, x: m.pads[2](m.pads[1](m.pads[0](x))), 32),
    "channels backwards": (lambda m, x: x.flip(1), 32),
    "averaged pixels": (
        lambda m, x: F.interpolate(x[:, :, :, 1:], scale_factor=0.5, mode="bilinear"), 32,
    ),
    "from a gate": (lambda m, x: x.mean((2, 3), keepdim=True) - 0.5 * x, 32),
    "a multiple on a gate": (
        lambda m, x: torch.add(x.mean((2, 3), keepdim=True), x, alpha=3), 32,
    ),
    "from a number": (lambda m, x: torch.rsub(x, 2, alpha=0.5), 32),
    "from another": (lambda m, x: torch.rsub(x, m.squeeze(x)), 32),
    "added in place": (lambda m, x: m.squeeze(x).add_(x).sub_(1), 32),
    "some of the parts": (lambda m, x: torch.cat(x.split(8, 1)[1:], 1), 24),
    "the parts backwards": (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), 32),
    "a part of the parts": (lambda m, x: x.chunk(2, 1)[0:1][0], 16),
    "other names": (lambda m, x: torch.multiply(x, torch.subtract(x, 1)).divide(3), 32),
    "larger": (lambda m, x: F.interpolate(x, size=(9, 11), mode="nearest-exact"), 32),
}  # fmt: skip


def sparse_of(between: Callable[[Any, Any], Any], channels: int) -> dsgc.SparseModule:
    torch.manual_seed(0)
    config = dsgc.SparsityConfig(0.5, rules={"first": 0.5, "second": 0.5}, block=8)
    return dsgc.compile(Around(between, channels), config=config).eval()


@pytest.mark.parametrize("name", HELD)
def test_an_artifact_computes_what_the_graph_does(name: str, tmp_path: Path) -> None:
    sparse = sparse_of(*HELD[name])
    model = dsgc_runtime.load(dsgc.export(sparse, tmp_path / "model.dsgc", X))
    for batch in (3, 1):
        with torch.no_grad(), sparse.hold_selection():
            expected = sparse.semantic_graph(X[:batch])
        found = torch.from_numpy(model(X[:batch].numpy()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


REFUSED: dict[str, Callable[[Any, Any], Any]] = {
    "padded with a number": lambda m, x: F.pad(x, (1, 1, 1, 1), value=2.0),
    "curves between pixels": lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "averages of several": lambda m, x: F.interpolate(
        x, size=(3, 3), mode="bilinear", antialias=True
    ),
    "averaged areas": lambda m, x: F.interpolate(x, size=(2, 7), mode="area"),
    "samples rolled": lambda m, x: x + x.roll(2, 0),
    "samples rolled, from behind": lambda m, x: x + x.roll(2, -4),
    "a number beyond float32": lambda m, x: F.relu6(x * 1e39),
    "a tiny divisor": lambda m, x: F.relu6(x / 1e-39),
    "samples backwards": lambda m, x: x.flip(0),
    "one over": lambda m, x: 1.0 / (x + 1.0),
    "a quotient": lambda m, x: x / (m.squeeze(x) ** 2 + 1.0),
    "by position": lambda m, x: x * torch.ones(6, 7),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_moves_or_computes_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    sparse = sparse_of(REFUSED[name], 32)
    with pytest.raises(dsgc.ExportError, match="which an artifact cannot hold"):
        dsgc.export(sparse, tmp_path / "model.dsgc", X)
    with torch.no_grad():
        assert sparse(X).shape == (3, 6)  # in Python it runs all the same
