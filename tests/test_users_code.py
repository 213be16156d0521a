"""What user code does with a module: torch.compile, hooks, results and arguments of all kinds."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dsgc

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
RULES: dict[Any, Any] = {"re:(net.)?3": 0.5, "re:(net.)?7": 0.5}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)),
    )


def compiled(model: nn.Module | None = None, **settings: Any) -> dsgc.SparseModule:
    settings = {"rules": RULES, "block": 8, **settings}
    return dsgc.compile(model or net(), config=dsgc.SparsityConfig(**settings))


# torch.compile


def test_torch_compile_leaves_the_sparse_module_alone() -> None:
    sparse, plain = compiled(), compiled()
    outside = torch.compile(sparse, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(outside(X), plain(X))
    outside(X).sum().backward()
    assert all(p.grad is not None for p in sparse.parameters())
    sparse.eval()
    outside(X)
    with torch.no_grad():
        sparse.get_parameter("3.weight").copy_(torch.randn(32, 16, 3, 3))
    torch.testing.assert_close(outside(X), sparse(X))


def test_torch_compile_of_a_model_around_a_sparse_module() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.sparse = nn.Conv2d(3, 3, 1), compiled()

        def forward(self, x: Tensor) -> Any:
            return self.sparse(self.first(x).relu()).sin()

    outer = Outer().eval()
    outside = torch.compile(outer, backend="eager")
    torch.testing.assert_close(outside(X), outer(X))


# Hooks


def test_hooks_see_every_call_once_and_only_real_tensors() -> None:
    seen: list[Tensor] = []
    sparse = compiled()
    sparse.get_submodule("5").register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    for count, side in enumerate((8, 8, 12, 10), 1):
        sparse(torch.randn(4, 3, side, side))
        assert len(seen) == count
    assert {type(one) for one in seen} == {Tensor}


def test_a_hook_without_which_the_model_fails_is_called_for_shapes() -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.cell = net(), nn.LSTM(10, 6, batch_first=True)
            self.cell.register_forward_hook(lambda m, i, o: o[0])

        def forward(self, x: Tensor) -> Any:
            return self.cell(self.net(x)[:, None]).sum(1)

    assert compiled(First())(X).shape == (4, 6)


def test_decisions_follow_hooks() -> None:
    sparse = compiled()
    sparse(X)
    handle = sparse.get_submodule("3").register_forward_hook(lambda *_: None)
    sparse(X)
    assert list(sparse.selections(X)) == ["7"]
    assert not sparse.decisions["3"].sparse
    assert sparse.decisions["3"].reason == "it has hooks"
    handle.remove()
    assert sparse.decisions["3"].sparse
    assert list(sparse.selections(X)) == ["3", "7"]


# Results and arguments


class _Doubled(nn.Conv2d):
    """Another convolution by the step that torch's forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made: Tensor = super()._conv_forward(x, weight, bias)
        return 2 * made


@pytest.mark.parametrize("how", ["a method of a class", "set before", "set afterwards"])
@pytest.mark.parametrize("backend", ["reference", "tvm"])
def test_layers_whose_code_somebody_replaced_run_it(how: str, backend: str) -> None:
    torch.manual_seed(0)
    kind = _Doubled if how == "a method of a class" else nn.Conv2d
    model = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), kind(16, 16, 3), nn.Flatten())
    layer = model[2]
    assert isinstance(layer, nn.Conv2d)

    def doubled(input: Tensor) -> Tensor:
        return 2 * nn.functional.conv2d(input, layer.weight, layer.bias)

    if how == "set before":
        layer.forward = doubled  # type: ignore[method-assign]
    x = torch.randn(2, 4, 9, 9)
    plain = 2 * nn.functional.conv2d(model[1](model[0](x)), layer.weight, layer.bias).flatten(1)
    config = dsgc.SparsityConfig(0.5, rules={"2": 0.5}, block=8)
    if how != "set afterwards":
        # There is nothing left that could be sparse.
        with pytest.raises(dsgc.NothingToSparsifyError, match="2: its code was replaced"):
            dsgc.compile(model, config=config, backend=backend)(x)
        return
    sparse = dsgc.compile(model, config=config, backend=backend)
    assert sparse(x).count_nonzero() < 0.6 * plain.numel()
    inner = sparse.get_submodule("2")
    inner.forward = doubled
    torch.testing.assert_close(sparse(x), plain)
    assert not sparse.decisions["2"].sparse


class Named(dict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Listed(list[Any]):
    pass


class Returning(nn.Module):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.net, self.kind = net(), kind

    def forward(self, x: Tensor) -> Any:
        return self.kind(self.net(x))


@pytest.mark.parametrize(
    "kind",
    [
        lambda y: Named(logits=y),
        lambda y: OrderedDict(logits=y),
        lambda y: (y, Named(inner=[y])),
        lambda y: Listed([y]),
        lambda y: {"logits": y},
        lambda y: [y, (y,)],
    ],
    ids=["named", "ordered", "nested", "listed", "dict", "list"],
)
def test_results_keep_their_classes(kind: Any) -> None:
    model = Returning(kind)

    def classes(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value), [classes(one) for one in value]
        if isinstance(value, dict):
            return type(value), [classes(one) for one in value.values()]
        return type(value)

    wanted = classes(model(X))
    sparse = compiled(model, schedule="linear", warmup_steps=4)
    for _ in range(6):  # dense in the beginning, then sparse
        assert classes(sparse(X)) == wanted
    assert sum(d.sparse for d in sparse.decisions.values()) == 2


@dataclass
class Batch:
    x: Tensor


class Taking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, batch: Any) -> Any:
        return self.net(batch.x)


@pytest.mark.parametrize("batch", [Batch(X), Named(x=X)], ids=["dataclass", "dict"])
def test_an_object_may_be_the_only_argument(batch: Any) -> None:
    sparse = compiled(Taking())
    assert sparse(batch).shape == (4, 10)
    assert sum(d.sparse for d in sparse.decisions.values()) == 2
    if isinstance(batch, Batch):
        assert "a Batch that holds a tensor (x)" in sparse.untraced[""]


# Rules


def test_rules_for_what_cannot_be_sparse_are_named() -> None:
    model = net()
    parametrizations.weight_norm(model[3])
    with pytest.warns(UserWarning, match=r"makes no layer sparse; '3': its weight is computed"):
        compiled(model)(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled()(X)
