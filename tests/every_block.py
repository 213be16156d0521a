"""A network that is sparse in form alone: every block wins, and results are the dense ones."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dsgc

ALL = dsgc.SparsityConfig(sparsity=0.01, rules={"re:.*": 0.01})


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 10)

    def normed(self, x: Tensor) -> Tensor:
        return self.norm(self.first(x))  # type: ignore[no-any-return]

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.normed(x))

    def answer(self, x: Tensor) -> Any:
        return self.head(self.second(x).mean((2, 3)))

    def forward(self, x: Any) -> Any:
        return self.answer(self.features(x))


def pair(model: nn.Module) -> tuple[nn.Module, dsgc.SparseModule]:
    """A copy of `model`, and what it is compiled to."""
    return copy.deepcopy(model), dsgc.compile(model, config=ALL)


def agree(model: nn.Module, *inputs: Tensor) -> dsgc.SparseModule:
    """Compiled, it has the results and gradients of `model`, in two calls."""
    dense, sparse = pair(model)
    for _ in range(2):
        expected, found = dense(*inputs), sparse(*inputs)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    expected.sum().backward()
    found.sum().backward()
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)
    assert any(d.sparse for d in sparse.decisions.values())
    return sparse
