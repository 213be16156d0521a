"""Models without sparse layers and with little to do run as programs for inference."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import dsgc
from dsgc.engine import Engine
from dsgc.zoo.small import MLP, LeNet5
from tests.test_inference import counted

X = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(5))


def all_dense(model: nn.Module, example: Tensor = X) -> tuple[dsgc.SparseModule, nn.Module]:
    """The model in eval mode, which is too small to be sparse, and a copy of it."""
    plain = copy.deepcopy(model).eval()
    with pytest.warns(UserWarning, match="the model runs dense"):
        module = dsgc.compile(model.eval(), sparsity=0.5, example_inputs=example)
    assert not any(layer.sparse for layer in module.decisions.values())
    return module, plain


@torch.no_grad()
def test_small_networks_run_as_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    module, plain = all_dense(LeNet5())
    with counted(monkeypatch) as done:
        for batch in (2, 1, 3):
            x = torch.randn(batch, 1, 28, 28)
            torch.testing.assert_close(module(x), plain(x), rtol=1e-5, atol=1e-5)
    assert done == ["made", "run", "run", "run"]


@torch.no_grad()
def test_weights_that_are_written_count() -> None:
    module, _ = all_dense(LeNet5())
    before = module(X)
    for parameter in module.parameters():
        parameter.mul_(0.5)
    plain = module.to_dense().eval()
    assert not torch.allclose(module(X), before)
    torch.testing.assert_close(module(X), plain(X), rtol=1e-5, atol=1e-5)


def test_others_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    module, plain = all_dense(LeNet5())
    large = torch.randn(128, 1, 28, 28)  # 53 M multiply-adds
    with counted(monkeypatch) as done:
        assert torch.equal(module(X), plain(X))  # somebody may want gradients
        with torch.no_grad():
            assert torch.equal(module(large), plain(large))
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert torch.equal(module(X), plain(X))
            assert torch.equal(module(x=X), plain(X))
            module.train()
            assert torch.equal(module(X), plain(X))
    assert not done


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = LeNet5()

    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        return self.net(x * scale)  # type: ignore[no-any-return]


@torch.no_grad()
def test_numbers_as_tensors_are_no_batch() -> None:
    plain = Scaled().eval()
    with pytest.warns(UserWarning, match="the model runs dense"):
        module = dsgc.compile(copy.deepcopy(plain), example_inputs=(torch.tensor(2.0), X))
    for _ in range(2):
        assert torch.equal(module(torch.tensor(2.0), X), plain(torch.tensor(2.0), X))


@torch.no_grad()
def test_what_no_program_can_hold_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Conv2d(1, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 32, 3)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4)]
    module, plain = all_dense(nn.Sequential(*layers, *head))
    assert torch.equal(module(X), plain(X))

    def never(*_: object) -> None:
        raise AssertionError("it is looked for again")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "program", never)
        assert torch.equal(module(X), plain(X))


@torch.no_grad()
def test_small_linear_layers_are_quicker_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    module, plain = all_dense(MLP(width=0.1))
    with counted(monkeypatch) as done:
        assert torch.equal(module(X), plain(X))
    assert not done


@torch.no_grad()
def test_other_images_than_layers_were_chosen_for(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 32, 3), nn.AdaptiveAvgPool2d(1)]
    module, plain = all_dense(nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 4)))
    with counted(monkeypatch) as done:
        x = torch.randn(2, 1, 40, 40)
        assert torch.equal(module(x), plain(x))
    assert not done


def test_a_layer_that_is_put_in_later_is_decided_about() -> None:
    inner = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3))
    module, _ = all_dense(nn.Sequential(inner, nn.Flatten(), nn.Linear(32 * 24 * 24, 4)))
    module(X)
    module.get_submodule("0").add_module("3", nn.Conv2d(32, 32, 1))
    with pytest.warns(UserWarning, match="the model runs dense"):
        made = module(X)
    torch.testing.assert_close(made, module.to_dense()(X))
    assert module.decisions["0.3"].macs == 32 * 32 * 24 * 24


def test_training_is_that_of_the_model() -> None:
    module, plain = all_dense(MLP(width=0.1))
    module.train()
    plain.train()
    for model in (module, plain):
        for _ in range(3):
            model(X).square().sum().backward()
    for mine, its in zip(module.parameters(), plain.parameters(), strict=True):
        assert its.grad is not None
        assert mine.grad is not None
        assert torch.equal(mine.grad, its.grad)


def test_an_empty_batch_is_refused_as_ever() -> None:
    layers = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 32, 3), nn.Flatten()]
    module, _ = all_dense(nn.Sequential(*layers, nn.Linear(32 * 24 * 24, 4)))
    module(X)
    module.train()
    with pytest.raises(dsgc.InputError, match="empty batch"):
        module(X[:0])


def test_transforms_go_through_to_the_model() -> None:
    module, plain = all_dense(MLP(width=0.1))
    module(X)
    many = torch.randn(3, 2, 1, 28, 28)
    assert torch.allclose(torch.vmap(module)(many), torch.vmap(plain)(many), atol=1e-6)
