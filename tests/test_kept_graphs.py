"""Which calls share a graph: arguments, attributes and hooks that a graph holds as constants."""

from __future__ import annotations

import enum
import pathlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from dsgc.kept_graphs import GRAPHS_OF_A_PART, Assumptions
from dsgc.tracing.call_shape import value_key
from tests.test_effects import Two, sparse_of

X = torch.randn(2, 16, 9, 9)


class Scaled(Two):
    scale: Any

    def __init__(self) -> None:
        super().__init__()
        self.scale = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * float(self.scale or 0)


class TakesMore(Two):
    def forward(self, x: Tensor, more: Any = None) -> Tensor:
        return super().forward(x) * float(getattr(more, "sum", lambda: more)())


class Fixed:
    """An object whose text says nothing about its value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "Fixed()"

    def sum(self) -> float:
        return self.value


@dataclass
class Setting:
    value: float

    def sum(self) -> float:
        return self.value


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def graphs_of(sparse: dsgc.SparseModule) -> int:
    return len(sparse._engine.programs)


def inside(sparse: dsgc.SparseModule) -> Any:
    return sparse._dense[0]


def test_keys_of_values_tell_them_apart() -> None:
    long = np.zeros(3000)
    other = long.copy()
    other[1500] = 3
    values: list[Any] = [
        None, True, False, 1, 0, 1.0, 0.0, -0.0, float("nan"), 1j, "1", b"1", "nan", torch.float32,
        long, other, long.astype(np.float32), long.reshape(30, 100), np.float64(1), np.int64(1),
        Colour.RED, Colour.BLUE, int, float, F.relu, F.gelu, (1, 2), [1, 2], (1, 2.0), {1}, {1.0},
        frozenset({1}), pathlib.PurePosixPath("1"), Setting(1), Setting(1.0), Setting(2),
        partial(F.relu, inplace=True), partial(F.relu, inplace=False), range(1), slice(1), ...,
        slice(1.0),
    ]  # fmt: skip
    keys = [value_key(value) for value in values]
    assert len(set(keys)) == len(keys)
    assert keys == [value_key(value) for value in values]
    assert value_key(other.copy()) == value_key(other)
    assert value_key(Setting(1)) == value_key(Setting(1))


def test_objects_that_may_hold_anything_have_no_key() -> None:
    for value in (Fixed(1), np.array([Fixed(1)]), [Fixed(1)], Setting(Fixed(1))):  # type: ignore[arg-type]
        with pytest.raises(dsgc.TraceError, match="may hold anything"):
            value_key(value)


@pytest.mark.parametrize(
    "make",
    [lambda v: np.full(3000, v), Setting, Fixed, float, np.float64],
    ids=["array", "setting", "object", "float", "numpy float"],
)
def test_results_follow_arguments_that_are_no_tensors(make: Callable[[float], Any]) -> None:
    sparse = sparse_of(TakesMore(), 1e-4).eval()
    for value in (0.0, 2.0, 0.0, 3.0):
        more = make(value)
        if isinstance(more, np.ndarray):
            more[0] = more[-1] = 0
        torch.testing.assert_close(sparse(X, more), inside(sparse)(X, more), rtol=1e-3, atol=1e-3)


def test_a_changed_argument_of_the_same_object() -> None:
    sparse = sparse_of(TakesMore(), 1e-4).eval()
    for more in (Fixed(1.0), Setting(1.0)):
        sparse(X, more)
        more.value = 0.0
        assert not sparse(X, more).any()


def test_few_graphs_are_kept_and_the_least_recently_used_goes() -> None:
    sparse = sparse_of(TakesMore()).eval()
    first = sparse(X, 0.5)
    kept = sparse.semantic_graph
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(1, GRAPHS_OF_A_PART):
            sparse(X, float(i))
    sparse(X, 0.5)
    assert sparse.semantic_graph is kept
    with pytest.warns(UserWarning, match="more than 32 graphs of the model"):
        sparse(X, -1.0)
    assert graphs_of(sparse) == GRAPHS_OF_A_PART
    torch.testing.assert_close(sparse(X, 0.5), first)
    assert sparse.semantic_graph is kept
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        sparse(X, 1.0)
    assert graphs_of(sparse) == GRAPHS_OF_A_PART


@pytest.mark.parametrize("value", [0, 2, 2.5, True, None, "3", -0.0, torch.tensor(4.0)])
def test_results_follow_attributes(value: Any) -> None:
    sparse = sparse_of(nn.Sequential(Scaled()), 1e-4).eval()
    sparse(X)
    before = sparse.semantic_graph
    inside(sparse)[0].scale = value
    torch.testing.assert_close(sparse(X), inside(sparse)(X), rtol=1e-3, atol=1e-3)
    inside(sparse)[0].scale = 1.0
    sparse(X)
    assert sparse.semantic_graph is before
    # A number that is read from a tensor may be another in the next call.
    assert list(sparse.untraced) == (["0"] if isinstance(value, Tensor) else [])


def test_results_follow_attributes_of_parts() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = Scaled()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) if x.sum() < 1e9 else x

    sparse = sparse_of(Untraceable(), 1e-4).eval()
    for scale in (1.0, 0.0, 2.0):
        inside(sparse).body.scale = scale
        torch.testing.assert_close(sparse(X), inside(sparse)(X), rtol=1e-3, atol=1e-3)


class WithDropout(Two):
    def __init__(self) -> None:
        super().__init__()
        self.p = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), self.p, self.training)


def test_probability_of_dropout_can_change() -> None:
    sparse = sparse_of(WithDropout(), 1e-4)
    assert sparse(X).all()
    inside(sparse).p = 1.0
    assert not sparse(X).any()


def test_new_attributes_and_functions_and_tensors() -> None:
    class Configured(Two):
        act: Any = staticmethod(F.relu)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(super().forward(x))  # type: ignore[no-any-return]

    sparse = sparse_of(Configured()).eval()
    assert (sparse(X) >= 0).all()
    inside(sparse).act = torch.neg
    assert (sparse(X) < 0).any()
    inside(sparse).act = torch.zeros_like
    assert not sparse(X).any()


def test_results_follow_settings_in_lists_and_dicts() -> None:
    class Configured(Two):
        def __init__(self) -> None:
            super().__init__()
            self.setting = {"scale": 1.0}
            self.factors = [1.0]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.setting["scale"] * self.factors[0]

    sparse = sparse_of(Configured()).eval()
    y = sparse(X)
    inside(sparse).setting["scale"] = 2.0
    torch.testing.assert_close(sparse(X), y * 2)
    inside(sparse).factors[0] = 3.0
    torch.testing.assert_close(sparse(X), y * 6)
    inside(sparse).factors.append(0.0)
    torch.testing.assert_close(sparse(X), y * 6)


def test_replaced_buffers_and_parameters() -> None:
    class Shifted(Two):
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.zeros(()))
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale + self.shift

    sparse = sparse_of(nn.Sequential(Shifted())).eval()
    y = sparse(X)
    inside(sparse)[0].shift = torch.tensor(5.0)
    torch.testing.assert_close(sparse(X), y + 5)
    inside(sparse)[0].scale = nn.Parameter(torch.tensor(2.0))
    torch.testing.assert_close(sparse(X), 2 * y + 5)


@pytest.mark.parametrize("name", ["a", "bn", "relu", ""])
def test_hooks_registered_later_run(name: str) -> None:
    class Net(Two):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(32)
            self.relu = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.relu(self.bn(self.a(x))))  # type: ignore[no-any-return]

    sparse = sparse_of(nn.Sequential(Net(), nn.Flatten())).eval()
    plain = sparse(X)
    graph = sparse.semantic_graph
    hooked = inside(sparse)[0].get_submodule(name)
    handle = hooked.register_forward_hook(lambda module, given, result: result * 0)
    if name:
        torch.testing.assert_close(sparse(X), sparse(X * 2))
        assert (sparse(X) != plain).any()
    else:
        assert not sparse(X).any()
    handle.remove()
    torch.testing.assert_close(sparse(X), plain)
    assert sparse.semantic_graph is graph


def test_assumptions_look_at_their_modules_only() -> None:
    model = Two()
    assumed = Assumptions([model.a])
    model.calls += 1
    model.b.register_forward_hook(lambda *_: None)
    assert assumed.hold()
    model.a.register_forward_pre_hook(lambda *_: None)
    assert not assumed.hold()
