"""Averages of weights: copies in eval mode whose weights and step are written in place."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

import dsgc

X = torch.randn(4, 16, 9, 9, generator=torch.Generator().manual_seed(3))


def sparse_net(**settings: Any) -> dsgc.SparseModule:
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
    )
    config = dsgc.SparsityConfig(0.5, rules={"0": 0.5, "3": 0.5}, block=8, **settings)
    return dsgc.compile(model, config=config, backend="reference")


@pytest.mark.parametrize("search", ["svd", "drs"])
def test_weights_written_after_eval_are_searched(search: str) -> None:
    sparse = sparse_net(selector=search)
    sparse(X)
    average = copy.deepcopy(sparse).eval()
    average(X)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.copy_(torch.randn_like(parameter))
    found = average(X)
    torch.testing.assert_close(found, average.eval()(X), rtol=0, atol=0)
    with torch.no_grad():
        average.get_parameter("0.weight").data = torch.randn(32, 16, 3, 3)
    found = average(X)
    torch.testing.assert_close(found, average.eval()(X), rtol=0, atol=0)


def test_weights_that_stay_are_projected_once() -> None:
    sparse = sparse_net()
    sparse(X)
    sparse.eval()
    before = [selector.projected for selector in sparse._bank.selectors]
    sparse(X)
    assert all(s.projected is b for s, b in zip(sparse._bank.selectors, before, strict=True))


def test_training_projects_as_often_as_the_config_says() -> None:
    sparse = sparse_net(refresh=1000)
    sparse(X)
    sparse.get_buffer("dsgc_selectors.step").fill_(200_001)
    before = [selector.projected for selector in sparse._bank.selectors]
    with torch.no_grad():
        sparse.get_parameter("0.weight").mul_(2)
    sparse(X)
    assert all(s.projected is b for s, b in zip(sparse._bank.selectors, before, strict=True))


@pytest.mark.parametrize("asked", ["selections", "call"])
def test_an_average_made_while_sparsity_grows_follows_it(asked: str) -> None:
    sparse = sparse_net(schedule="cubic", warmup_steps=10)
    sparse(X)
    average = AveragedModel(sparse)
    copied = average.eval().module
    assert isinstance(copied, dsgc.SparseModule)
    for _ in range(20):
        sparse(X)
        average.update_parameters(sparse)
    if asked == "call":
        average(X)
        kept = [s.winners / s.blocks for s in copied._bank.selectors]
    else:
        kept = [float(mask.float().mean()) for mask in copied.selections(X).values()]
    assert kept == [0.5, 0.5]


def test_a_step_that_is_set_counts_in_training_too() -> None:
    sparse = sparse_net(schedule="cubic", warmup_steps=10)
    sparse(X)
    sparse.get_buffer("dsgc_selectors.step").fill_(300)
    sparse(X)
    assert [s.winners / s.blocks for s in sparse._bank.selectors] == [0.5, 0.5]


@pytest.mark.parametrize("search", ["svd", "drs"])
def test_a_module_called_in_inference_mode_loads_and_trains(search: str) -> None:
    sparse = sparse_net(selector=search).eval()
    with torch.inference_mode():
        sparse(X)
    state = copy.deepcopy(sparse.state_dict())
    sparse.load_state_dict(state)
    sparse.train()
    sparse(X)
    assert int(sparse._bank.step) == 1
