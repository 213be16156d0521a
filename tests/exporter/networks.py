"""Small networks in eval mode, and artifacts of them, that several tests share."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, fx, nn

import dsgc
import dsgc_runtime
from dsgc.programs.live import LiveProgram

__all__ = ["Small", "assert_all_agree", "assert_program_agrees", "exported", "make_sparse"]

IMAGE = (3, 12, 12)


class Small(nn.Module):
    """Two sparse convolutions, a pooling and a classifier: every kind of value occurs."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            nn.MaxPool2d(2),
            *(nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        )
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 7))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.classifier(self.features(x)))


def make_sparse(model: nn.Module, **settings: object) -> dsgc.SparseModule:
    """`model` with every layer sparse but the first and the last, in eval mode."""
    layers = [name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    rules = dict.fromkeys(layers[1:-1], 0.75)
    config = dsgc.SparsityConfig(sparsity=0.75, rules=rules, **settings)  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return dsgc.compile(model, config=config).eval()


def exported(folder: Path, name: str = "small.dsgc") -> tuple[dsgc.SparseModule, Path]:
    """The small network and an artifact of it."""
    torch.manual_seed(0)
    sparse = make_sparse(nn.Sequential(Small().features, Small().classifier))
    return sparse, dsgc.export(sparse, folder / name, torch.randn(4, *IMAGE))


def assert_program_agrees(model: nn.Module, x: Tensor) -> None:
    """The program of a dense model computes what the model does in eval mode, for the batch that it
    was made for and for another one.
    """
    program = LiveProgram(fx.symbolic_trace(model.eval()), [x], [])
    for given in (x, torch.cat((x, x.flip(0)))[1:]):
        with torch.no_grad():
            torch.testing.assert_close(program([given]), model(given), rtol=1e-4, atol=2e-5)


def assert_all_agree(sparse: dsgc.SparseModule, folder: Path, x: Tensor) -> None:
    """Module, semantic graph and artifact compute the same, for the whole batch and for a sample.

    `x` [N, ...] is the artifact's example as well.
    """
    model = dsgc_runtime.load(dsgc.export(sparse, folder / "model.dsgc", x))
    for batch in (x.shape[0], 1):
        with torch.no_grad():
            live = sparse(x[:batch])
            with sparse.hold_selection():
                expected = sparse.semantic_graph(x[:batch])
        torch.testing.assert_close(live, expected, rtol=1e-4, atol=1e-5)
        found = torch.from_numpy(model(x[:batch].numpy()))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
