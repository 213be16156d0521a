"""Derivatives of whole modules beyond the first."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd.functional import hvp

import dsgc


def _sparse(backend: str) -> dsgc.SparseModule:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 16, 3), nn.Tanh(),
    )  # fmt: skip
    config = dsgc.SparsityConfig(0.5, rules={"3": 0.5, "6": 0.5}, block=8)
    return dsgc.compile(model.double() if backend == "reference" else model, config=config,
                        backend=backend)  # fmt: skip


def test_the_reference_backend_has_them() -> None:
    sparse = _sparse("reference").eval()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda v: sparse(v).square(), x.requires_grad_())


@pytest.mark.parametrize("training", [False, True])
def test_generated_kernels_refuse_them(training: bool) -> None:
    sparse = _sparse("tvm").train(training)
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(sparse(x).square().sum(), x, create_graph=True)
    with pytest.raises(dsgc.UnsupportedError, match='compile with backend="reference" for second'):
        grad.square().sum().backward()  # type: ignore[no-untyped-call]
    with pytest.raises(dsgc.UnsupportedError, match="second"):
        hvp(  # type: ignore[no-untyped-call]
            lambda v: sparse(v).square().sum(), x, torch.ones_like(x)
        )
