"""What forwards do besides calling layers has the dense model's results, in a graph or outside."""

from __future__ import annotations

import copy
import enum
import warnings
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from tests.every_block import ALL, Net, agree, pair

X = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(0))


# Operators


class Masks(Net):
    def forward(self, x: Any) -> Any:
        x = F.relu(self.normed(x))
        positive = x > 0
        small = positive & (x < 1)
        return self.answer(x * small + positive.float())


def test_masks_and_comparisons() -> None:
    assert "" not in agree(Masks(), X).untraced


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:  # not in a graph
            x = x * 1.0
        return x.view(x.size(0), -1)


def test_code_outside_graphs_gets_maps_in_their_order() -> None:
    conv = nn.Conv2d(32, 32, 3)
    agree(nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), conv, Flat(), nn.Linear(512, 10)), X)


class Hooks(Net):
    def forward(self, x: Any) -> Any:
        x = F.relu(self.normed(x))
        if x.requires_grad:
            x.register_hook(lambda grad: 2 * grad)
        return self.answer(x)


def test_hooks_of_tensors_run() -> None:
    assert "" in agree(Hooks(), X).untraced


# Parts of a model that runs by its own code


class OwnCode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
        )
        self.layers = nn.ModuleList([nn.Conv2d(32, 32, 1), nn.ReLU()])
        self.head = nn.Linear(32, 10)

    def check(self, x: Tensor) -> None:
        if x.sum() > 1e9:  # no graph can hold this
            raise ValueError

    def forward(self, x: Any) -> Any:
        self.check(x)
        return self.head(self.body(x).mean((2, 3)))


class Frozen(OwnCode):
    def forward(self, x: Any) -> Any:
        self.check(x)
        self.body.eval()
        with torch.no_grad():
            x = self.body(x)
        return self.head(x.mean((2, 3)))


class Dispatching(OwnCode):
    def forward(self, x: Any) -> Any:
        self.check(x)
        x = self.body(x)
        for layer in self.layers:
            x = x + layer(x) if isinstance(layer, nn.Conv2d) else layer(x)
        return self.head(x.mean((2, 3)))


class Looking(OwnCode):
    def forward(self, x: Any) -> Any:
        self.check(x)
        decay = sum(parameter.pow(2).sum() for parameter in self.parameters())
        weight = self.state_dict()["head.weight"]
        for child in self.body.children():
            x = child(x.to(next(child.parameters(), x).dtype))
        return self.head(x.mean((2, 3))) + decay + weight.mean()


class Indexing(OwnCode):
    def forward(self, x: Any) -> Any:
        self.check(x)
        body: Any = self.body
        body.calls = getattr(body, "calls", 0) + 1
        x = self.body[:2](x)
        for layer in body[2:]:
            x = layer(x)
        assert len(self.body) == 4
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("kind", [OwnCode, Frozen, Dispatching, Looking, Indexing])
def test_own_code_sees_children_as_they_are(kind: type[OwnCode]) -> None:
    sparse = agree(kind(), X)
    assert "" in sparse.untraced
    assert type(sparse.body) is nn.Sequential


def test_own_code_freezes_and_counts_on_the_model_itself() -> None:
    dense, sparse = pair(Frozen())
    dense(X)
    sparse(X)
    assert torch.equal(sparse.get_buffer("body.1.running_mean"), torch.zeros(32))
    assert not sparse.body.training
    _, sparse = pair(Indexing())
    sparse(X)
    sparse(X)
    assert sparse.body.calls == 2


def test_a_class_that_cannot_be_derived_from_stays_dense() -> None:
    class Registered(nn.Sequential):
        def __init_subclass__(cls, *, tag: str) -> None:
            raise AssertionError("only by its author")

    class Outer(OwnCode):
        def __init__(self) -> None:
            super().__init__()
            self.body = Registered(*self.body)

    agree(Outer(), X)


# Constants


class NamedBuffer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Any) -> Any:
        return super().forward(x) * dict(self.named_buffers())["scale"].sqrt()


class PlainTensor(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(())

    def forward(self, x: Any) -> Any:
        return super().forward(x) / self.scale.clamp(min=0.1)


@pytest.mark.parametrize("kind", [NamedBuffer, PlainTensor])
def test_tensors_that_are_computed_with_may_change(kind: type[Net]) -> None:
    dense, sparse = (one.eval() for one in pair(kind()))
    for value in (1.0, 9.0):
        for one in (dense, sparse):
            one.scale.fill_(value)  # type: ignore[operator]
        torch.testing.assert_close(sparse(X), dense(X), rtol=1e-4, atol=1e-5)


def test_a_penalty_over_all_parameters_has_its_gradient_every_time() -> None:
    class Penalised(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x), sum(p.pow(2).sum() for p in self.parameters())

    dense, sparse = pair(Penalised())
    for _ in range(2):
        for one in (dense, sparse):
            one.zero_grad()
            out, penalty = one(X)
            (out.sum() + penalty).backward()
    for mine, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)


def test_a_tensor_made_in_the_code_is_a_new_one_every_time() -> None:
    class WithLoss(Net):
        def forward(self, x: Any) -> Any:
            return super().forward(x), torch.zeros(())

    _, sparse = pair(WithLoss())
    totals = []
    for _ in range(2):
        out, total = sparse(X)
        total += out.detach().pow(2).mean()
        totals.append(float(total))
    assert totals[0] == pytest.approx(totals[1], rel=1e-3)
    assert sparse.untraced == {}


# Attributes that hold more than one value


class Mode(enum.Enum):
    PLAIN, TRIPLE = 1, 3


@dataclass
class Setting:
    factor: float = 1.0


class Config:
    def __init__(self) -> None:
        self.factors: list[Any] = [1.0, {"others": 2}]


def _set(value: Any) -> Any:
    return lambda model: setattr(model, "held", value)


@pytest.mark.parametrize(
    ("held", "change", "read"),
    [
        (Mode.PLAIN, _set(Mode.TRIPLE), lambda held: float(held.value)),
        (SimpleNamespace(a=1.0), lambda m: setattr(m.held, "a", 3.0), lambda held: held.a),
        (SimpleNamespace(a=1.0), _set(SimpleNamespace(a=3.0)), lambda held: held.a),
        ({"o": {"a": 1.0}}, lambda m: m.held["o"].update(a=3.0), lambda held: held["o"]["a"]),
        (([1.0],), lambda m: m.held[0].append(2.0), lambda held: len(held[0])),
        ({1}, lambda m: m.held.add(2), len),
        (Setting(), lambda m: setattr(m.held, "factor", 3.0), lambda held: held.factor),
        (Config(), lambda m: m.held.factors.insert(0, 3.0), lambda held: held.factors[0]),
        (np.float32(1), _set(np.float32(3)), float),
        (np.ones(2), lambda m: m.held.fill(3), lambda held: float(held[0])),
    ],
)
def test_what_attributes_hold_is_followed(held: Any, change: Any, read: Any) -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.held = copy.deepcopy(held)

        def forward(self, x: Any) -> Any:
            return super().forward(x) * read(self.held)

    dense, sparse = (one.eval() for one in pair(Scaled()))
    sparse(X)
    kept = sparse.semantic_graph
    sparse.held = copy.deepcopy(held)
    sparse(X)
    assert sparse.semantic_graph is kept
    change(dense)
    change(sparse)
    torch.testing.assert_close(sparse(X), dense(X), rtol=1e-4, atol=1e-5)
    assert sparse.semantic_graph is not kept


# Calls that fail


@pytest.mark.parametrize("first", [True, False])
def test_a_failed_call_leaves_nothing_behind(first: bool) -> None:
    class Picky(Net):
        def forward(self, x: Any, scale: float = 1.0) -> Any:
            if scale < 0:
                raise ValueError("a negative scale")
            return super().forward(x) * scale

    good, bad = (pair(Picky())[1] for _ in range(2))
    bad.load_state_dict(good.state_dict())
    if not first:
        bad(X)
        good(X)
    with pytest.raises(TypeError, match="positional"):
        bad(X, 1.0, X)
    with pytest.raises(ValueError, match="a negative scale"):
        bad(X, -1.0)
    torch.testing.assert_close(bad(X), good(X), rtol=0, atol=0)
    assert bad.untraced == {}
    assert bad.semantic_graph is not None


def test_calls_of_one_kind_decide_for_that_kind_alone() -> None:
    class Checking(Net):
        def forward(self, x: Any, check: bool = False) -> Any:
            if check and x.isnan().any():
                raise ValueError
            return super().forward(x)

    dense, sparse = pair(Checking())
    torch.testing.assert_close(sparse(X), dense(X), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sparse(X, check=True), dense(X), rtol=1e-4, atol=1e-5)
    with pytest.raises(dsgc.TraceError, match="no single graph"):
        sparse.graph("lowered")
    sparse(X)
    assert sparse.graph("lowered") is not None


@pytest.mark.parametrize("call", [lambda s: s(X, X), lambda s: s(X[:, :3]), lambda s: s(x=1)])
def test_a_failed_call_is_no_step_and_not_the_last_call(call: Any) -> None:
    model = Net()
    config = dsgc.SparsityConfig(0.5, rules={"re:.*": 0.5}, schedule="linear", warmup_steps=4)
    sparse = dsgc.compile(model, config=config)
    sparse(X)
    graph = str(sparse.graph("lowered"))
    for _ in range(3):
        with pytest.raises((TypeError, ValueError, RuntimeError)):
            call(sparse)
    assert int(sparse.dsgc_selectors.step) == 1
    assert str(sparse.graph("lowered")) == graph
    assert sparse.untraced == {}
    sparse(X)
    assert int(sparse.dsgc_selectors.step) == 2
    assert sparse._given_or_seen((), {}) == ((X,), {})


# What is refused


def test_transforms_of_torch_func_are_refused() -> None:
    _, sparse = pair(Net())
    sparse.eval()
    with pytest.raises(dsgc.UnsupportedError, match=r"torch\.func"):
        torch.func.jvp(sparse, (X,), (X,))


def test_a_replaced_forward_of_the_model_itself_is_refused() -> None:
    model = Net()
    inner = model.forward
    model.forward = lambda x: inner(x) * 2  # type: ignore[method-assign]
    with pytest.raises(dsgc.UnsupportedError, match="Sequential"):
        pair(model)

    class Called(Net):
        def __call__(self, x: Any) -> Any:
            return super().__call__(x / 4)

    with pytest.raises(dsgc.UnsupportedError, match="__call__"):
        pair(Called())
    agree(nn.Sequential(Called()), X)


def test_one_empty_input_of_several_is_an_input() -> None:
    class Boxes(Net):
        def forward(self, x: Any, boxes: Any) -> Any:  # type: ignore[override]
            return super().forward(x), 2 * boxes

    _, sparse = pair(Boxes())
    assert sparse(X, torch.zeros(0, 4))[1].shape == (0, 4)
    with pytest.raises(dsgc.InputError, match="empty batch"):
        sparse(X[:0], torch.zeros(0, 4))


def test_a_model_compiled_in_inference_mode_can_be_trained() -> None:
    model = Net()
    with torch.inference_mode():
        sparse = dsgc.compile(model, config=ALL)
    sparse(X).sum().backward()
    assert sparse.first.weight.grad.abs().sum() > 0


def test_choosing_layers_changes_no_parametrization() -> None:
    conv = nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 32, 3))
    model = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(32, 32, 3))
    before = copy.deepcopy(model.state_dict())
    sparse = dsgc.compile(model, config=ALL, example_inputs=X)
    for name, value in before.items():
        assert torch.equal(sparse.state_dict()[name], value), name


def test_a_parametrization_that_comes_later_runs_as_often_as_in_the_model() -> None:
    dense, sparse = pair(Net())
    sparse(X)
    dense(X)
    for one in (dense, sparse):
        torch.manual_seed(0)
        nn.utils.parametrizations.spectral_norm(one.get_submodule("second"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the layer stays dense now
        sparse(X)
    dense(X)
    for name, value in dense.named_buffers():
        torch.testing.assert_close(sparse.get_buffer(name), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inputs", [{"x": X}, X.numpy(), "x"])
def test_examples_that_are_none(inputs: Any) -> None:
    with pytest.raises(dsgc.ConfigError, match="example_inputs must be a tensor or a tuple"):
        dsgc.compile(Net(), config=ALL, example_inputs=inputs)


def test_layers_that_did_not_run_are_told_of() -> None:
    class Either(Net):
        def forward(self, x: Any, other: bool = False) -> Any:
            x = F.relu(self.normed(x))
            return self.answer(x) if other else self.head(x.mean((2, 3)))

    with pytest.warns(UserWarning, match="names 'second', which did not run"):
        dsgc.compile(Either(), config=ALL)(X)
