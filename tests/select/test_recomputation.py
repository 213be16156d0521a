"""Activation checkpointing would select other blocks the second time: it is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import dsgc

X = torch.randn(4, 16, 9, 9, generator=torch.Generator().manual_seed(3))


def blocks() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
    )


class Parts(nn.Module):
    """Its own forward cannot be traced and checkpoints a part."""

    def __init__(self, reentrant: bool, of: str) -> None:
        super().__init__()
        self.body, self.dense = blocks(), nn.Conv2d(32, 32, 1)
        self.reentrant, self.of = reentrant, of

    def forward(self, x: Tensor) -> Any:
        if x.sum() > 1e9:
            return x
        for name in ("body", "dense"):
            part = getattr(self, name)
            x = checkpoint(part, x, use_reentrant=self.reentrant) if name == self.of else part(x)
        return F.relu(x)


def sparse_of(model: nn.Module, *rules: str) -> dsgc.SparseModule:
    config = dsgc.SparsityConfig(0.5, rules=dict.fromkeys(rules, 0.5), block=8)
    return dsgc.compile(model, config=config, backend="reference")


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_the_module_is_refused_and_counts_no_step(reentrant: bool) -> None:
    sparse = sparse_of(blocks(), "0", "3")
    made = checkpoint(sparse, X.clone().requires_grad_(), use_reentrant=reentrant)
    with pytest.raises(dsgc.UnsupportedError, match=r"checkpointing.* is not supported"):
        made.sum().backward()
    assert int(sparse._bank.step) == 1


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_a_sparse_part_is_refused(reentrant: bool) -> None:
    sparse = sparse_of(Parts(reentrant, "body"), "body.0", "body.3")
    made = sparse(X.clone().requires_grad_())
    with pytest.raises(dsgc.UnsupportedError, match=r"layer 'body.0' runs in training mode"):
        made.sum().backward()


def test_checkpointing_a_dense_part_and_in_eval_mode_works() -> None:
    sparse = sparse_of(Parts(False, "dense"), "body.0", "body.3")
    sparse(X.clone().requires_grad_()).sum().backward()
    sparse = sparse_of(blocks(), "0", "3").eval()
    x, again = X.clone().requires_grad_(), X.clone().requires_grad_()
    sparse(x).square().sum().backward()
    checkpoint(sparse, again, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(again.grad, x.grad)
