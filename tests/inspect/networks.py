"""Small networks that the tests of inspection look at."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import dsgc
from dsgc import Rule, SparsityConfig

X = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))


class Residual(nn.Module):
    """Convolutions with batch norms, a residual sum, a pooling, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(32)
        self.pool = nn.MaxPool2d(2)
        self.third = nn.Conv2d(32, 48, 3, padding=1)
        self.grouped = nn.Conv2d(48, 48, 3, padding=1, groups=4)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.norm2(self.second(x)) + x)
        x = torch.relu(self.third(self.pool(x)))
        return self.head(self.grouped(x).mean((2, 3)))  # type: ignore[no-any-return]


class LooksAtData(nn.Module):
    """A model whose own code cannot be traced, around parts that can."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU())
        self.tail = nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if float(x.sum()) > 1e9:
            x = x * 2
        return self.head(self.tail(x).mean((2, 3)))  # type: ignore[no-any-return]


RULES = tuple(
    Rule(name, sparsity=0.75) for name in ("first", "second", "third", "0", "3", "body.0", "tail.0")
)


def config(*names: str, **settings: object) -> SparsityConfig:
    """Makes the named layers sparse, whatever it costs."""
    rules = tuple(rule for rule in RULES if rule.pattern in names)
    return SparsityConfig(rules=rules, block=8, **settings)  # type: ignore[arg-type]


def residual(backend: str = "auto", **settings: object) -> dsgc.SparseModule:
    """The residual network with three sparse convolutions, in eval mode."""
    torch.manual_seed(0)
    made = config("first", "second", "third", **settings)
    return dsgc.compile(Residual().eval(), config=made, backend=backend, example_inputs=X)
