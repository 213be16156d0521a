"""Averages of pixels written as functions, in exported models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
import dsgc_runtime
from tests.exporter.networks import IMAGE, Small, make_sparse


class Averaged(nn.Module):
    """Two averages of one sparse map: as a result, and as what a linear layer reads."""

    def __init__(self, average: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = Small().features
        self.average = average
        self.last = nn.LazyLinear(7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.features(x)
        return self.average(maps), self.last(torch.flatten(self.average(maps), 1))


AVERAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "to a size": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    "one side kept": lambda x: F.adaptive_avg_pool2d(x, (None, 3)),
    "mean": lambda x: x.mean((2, 3)),
    "mean from the end": lambda x: x.mean(dim=(-2, -1)),
    "mean in another order": lambda x: x.mean([-1, 2]),
    "mean kept": lambda x: x.mean((-2, -1), keepdim=True),
    "mean kept, by position": lambda x: x.mean((2, 3), True),
    "torch.mean": lambda x: torch.mean(x, (2, 3)),
    "torch.mean kept": lambda x: torch.mean(x, dim=(-1, -2), keepdim=True),
    "mean of a function": lambda x: torch.sigmoid(x).mean((2, 3)),
}


@pytest.mark.parametrize("average", AVERAGES)
def test_averages_agree(average: str, tmp_path: Path) -> None:
    model = Averaged(AVERAGES[average])
    model(torch.randn(2, *IMAGE))
    sparse = make_sparse(model)
    path = dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(4, *IMAGE))
    artifact = dsgc_runtime.load(path, threads=1)
    for batch in (4, 1, 7):
        x = torch.randn(batch, *IMAGE)
        with torch.no_grad():
            wanted = sparse(x)
        for one, other in zip(artifact(x), wanted, strict=True):
            assert one.shape == other.shape
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "average",
    [
        lambda x: x.mean(1, keepdim=True),
        lambda x: x.mean((0, 2, 3)),
        lambda x: x.mean((1, 2)),
        lambda x: x.mean((2, 3), dtype=torch.float64).float(),
    ],
    ids=["channels", "batch", "a channel too", "float64"],
)
def test_other_means_are_named(average: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = Small().features
            self.last = nn.Conv2d(48, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return average(self.last(self.features(x)))

    sparse = make_sparse(Other())
    with pytest.raises(dsgc.ExportError, match="is a mean"):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, *IMAGE))
    assert list(tmp_path.iterdir()) == []
