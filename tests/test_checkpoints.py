"""A checkpoint says which layers are sparse, so that the same network comes back."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsgc

LARGE, SMALL = torch.randn(32, 4, 16, 16), torch.randn(3, 4, 16, 16)
DECISIONS = "dsgc_selectors.decisions"


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((4, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


def compiled(model: nn.Module | None = None, **settings: Any) -> dsgc.SparseModule:
    # Random projections of few dimensions, which are as cheap as those that follow the weight.
    config = dsgc.SparsityConfig(0.8, reduced_dimension=144, **settings)
    return dsgc.compile(model or net(), config=config, backend="reference")


def trained(**settings: Any) -> dsgc.SparseModule:
    """Its large batch makes two layers sparse; a small one makes one."""
    sparse = compiled(**settings)
    sparse(LARGE)
    assert chosen(sparse) == ["3", "6"]
    return sparse


def chosen(sparse: dsgc.SparseModule) -> list[str]:
    return [site for site, decision in sparse.decisions.items() if decision.sparse]


@pytest.mark.parametrize("search", ["svd", "drs"])
@pytest.mark.parametrize("called", [False, True])
def test_the_batch_of_the_first_call_does_not_change_a_loaded_network(
    called: bool, search: str
) -> None:
    first, other = trained(selector=search), compiled(selector=search, seed=3)
    if called:
        other(SMALL)
        assert chosen(other) == ["6"]
    other.load_state_dict(first.state_dict())
    torch.testing.assert_close(other.eval()(SMALL), first.eval()(SMALL))
    assert chosen(other) == ["3", "6"]
    assert other.decisions["3"].macs == first.decisions["3"].macs
    assert other.decisions["0"].reason == first.decisions["0"].reason


def test_decisions_are_bytes_that_every_format_holds() -> None:
    state = trained().state_dict()
    assert state[DECISIONS].dtype == torch.uint8
    assert state[DECISIONS].dim() == 1
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = compiled()
    other.load_state_dict(torch.load(file, weights_only=True))
    other(SMALL)
    assert chosen(other) == ["3", "6"]
    assert DECISIONS not in compiled().state_dict()


def test_a_checkpoint_without_decisions_changes_none() -> None:
    sparse, state = trained(), trained().state_dict()
    del state[DECISIONS]
    for without in (state, net().state_dict()):
        result = sparse.load_state_dict(without)
        assert (result.missing_keys, result.unexpected_keys) == ([], [])
        assert chosen(sparse) == ["3", "6"]


def test_loading_the_same_decisions_keeps_graphs_and_selectors() -> None:
    sparse = trained()
    graph, selectors = sparse.lowered_graph, sparse._bank.selectors
    sparse.load_state_dict(copy.deepcopy(sparse.state_dict()))
    assert sparse.lowered_graph is graph
    assert sparse._bank.selectors == selectors
    assert not sparse._bank.pending


def test_decisions_are_not_lost_before_the_first_call() -> None:
    state = trained(selector="drs").state_dict()
    between = compiled(selector="drs", seed=3)
    between.load_state_dict(state)
    again = between.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    file = io.BytesIO()
    torch.save(copy.deepcopy(between), file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    other(SMALL)
    assert chosen(other) == ["3", "6"]


def test_a_rule_comes_before_the_checkpoint() -> None:
    state = trained().state_dict()
    for called in (False, True):
        other = compiled(rules={"3": None, "0": 0.5})
        if called:
            other(SMALL)
        other.load_state_dict(state)
        other(SMALL)
        assert chosen(other) == ["0", "6"]
        other.load_state_dict(state)
        assert chosen(other) == ["0", "6"]


def test_what_does_not_fit_the_model_is_left_out() -> None:
    state = {k: v for k, v in trained().state_dict().items() if not k.startswith("6.")}
    model = net()
    model[6], model[7], model[11] = nn.Conv2d(128, 64, 1), nn.BatchNorm2d(64), nn.Linear(64, 10)
    for name in ("7.weight", "7.bias", "7.running_mean", "7.running_var", "11.weight"):
        del state[name]
    sparse = compiled(model)
    sparse.load_state_dict(state, strict=False)
    sparse(SMALL)
    assert chosen(sparse) == ["3"]


class Branch(nn.Module):
    """Which of two layers runs depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Conv2d(64, 256, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(256, 8, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.left(x) if x.mean() < 0 else self.right(x))


def test_layers_of_the_way_not_taken_stay_sparse() -> None:
    class Both(Branch):
        def forward(self, x: Tensor) -> Any:
            return self.last(self.left(x) + self.right(x)) if x.sum() < 1e9 else x

    config = dsgc.SparsityConfig(0.8)
    first = dsgc.compile(Both(), config=config, backend="reference")
    with torch.no_grad():
        first(torch.randn(32, 64, 16, 16))
    assert chosen(first) == ["left", "right"]
    other = dsgc.compile(Branch(), config=config, backend="reference")
    other.load_state_dict(first.state_dict())
    other(torch.full((2, 64, 8, 8), -1.0))
    assert sorted(chosen(other)) == ["left", "right"]
    assert other.selections(torch.full((2, 64, 8, 8), 1.0)).keys() == {"right"}


@pytest.mark.parametrize("assign", [False, True])
def test_a_module_made_without_memory(assign: bool) -> None:
    first = trained()
    with torch.device("meta"):
        other = compiled()
    if not assign:
        other.to_empty(device="cpu")
    other.load_state_dict(first.state_dict(), assign=assign)
    torch.testing.assert_close(other.eval()(SMALL), first.eval()(SMALL))
    assert int(other._bank.step) == 1


def test_emptied_after_its_first_call_it_keeps_its_step() -> None:
    sparse = trained()
    state = copy.deepcopy(sparse.state_dict())
    expected = sparse.eval()(SMALL)
    sparse.to_empty(device="cpu")
    assert int(sparse._bank.step) == 1
    sparse.load_state_dict(state)
    torch.testing.assert_close(sparse(SMALL), expected)


@pytest.mark.parametrize("text", [b"{}", b"\xff", b'{"format": 2, "layers": []}'])
def test_decisions_that_cannot_be_read_are_an_error(text: bytes) -> None:
    state = net().state_dict()
    state[DECISIONS] = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(dsgc.ConfigError, match="decisions about layers"):
        compiled().load_state_dict(state)


def test_random_selections_are_those_of_the_step_that_was_saved() -> None:
    config = dsgc.SparsityConfig(0.5, rules={"re:.*": 0.5}, selector="random", block=8)
    x = torch.randn(2, 16, 8, 8)

    def made() -> dsgc.SparseModule:
        torch.manual_seed(0)
        conv, other = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3)
        return dsgc.compile(nn.Sequential(conv, nn.ReLU(), other), config=config)

    trained, fresh = made(), made()
    for _ in range(3):
        trained(x)
    fresh.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh.eval()(x), trained.eval()(x))
