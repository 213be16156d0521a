"""Results have the strides that the dense model gives them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from tests.every_block import pair

CHANNELS_LAST = torch.channels_last


class Two(nn.Module):
    """Two convolutions and what `end` makes of them; `cut` keeps the code out of tracing."""

    def __init__(self, end: Callable[[Tensor], object], cut: bool, kernel: int = 3) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 32, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(32)
        self.b = nn.Conv2d(32, 24, kernel, padding=kernel // 2)
        self.end = end
        self.cut = cut

    def forward(self, x: Tensor) -> object:
        if self.cut and x.sum() > 1e9:
            return x
        y = F.relu(self.norm(self.a(x)))
        return self.end(self.b(y))


def _compiled(model: nn.Module, backend: str) -> dsgc.SparseModule:
    config = dsgc.SparsityConfig(0.5, rules={"a": 0.5, "b": 0.5}, block=8)
    return dsgc.compile(model, config=config, backend=backend)


ENDS: dict[str, Callable[[Tensor], object]] = {
    "layer": lambda y: y,
    "relu": F.relu,
    "sum": lambda y: y + y.sigmoid(),
    "pooled": lambda y: F.max_pool2d(y, 2),
    "rows": lambda y: y.flatten(2),
}


@pytest.mark.parametrize("backend", ["reference", "tvm"])
@pytest.mark.parametrize("weights", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("inputs", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("end", ENDS)
def test_strides_are_those_of_the_dense_model(
    end: str,
    kernel: int,
    cut: bool,
    inputs: torch.memory_format,
    weights: torch.memory_format,
    backend: str,
) -> None:
    model = Two(ENDS[end], cut, kernel).to(memory_format=weights)  # type: ignore[call-overload]
    x = torch.randn(3, 16, 6, 8).contiguous(memory_format=inputs)
    sparse = _compiled(model, backend)
    for training in (True, False):
        dense, found = model.train(training)(x), sparse.train(training)(x)
        assert found.shape == dense.shape
        assert found.stride() == dense.stride()


@pytest.mark.parametrize("backend", ["reference", "tvm"])
def test_the_order_follows_weights_and_inputs_of_every_call(backend: str) -> None:
    """Without being compiled again."""
    sparse = _compiled(Two(lambda y: y, False), backend)
    x = torch.randn(3, 16, 6, 8)
    assert sparse(x).is_contiguous()
    assert sparse(x.contiguous(memory_format=CHANNELS_LAST)).is_contiguous(
        memory_format=CHANNELS_LAST
    )
    sparse.to(memory_format=CHANNELS_LAST)  # type: ignore[call-overload]
    assert sparse(x).is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("backend", ["reference", "tvm"])
@pytest.mark.parametrize("cut", [False, True])
def test_code_behind_a_sparse_part_can_view_its_result(cut: bool, backend: str) -> None:
    sparse = _compiled(Two(lambda y: y.view(y.size(0), -1), cut), backend)
    y = sparse(torch.randn(3, 16, 6, 8))
    assert y.shape == (3, 24 * 48)
    y.sum().backward()


class Pair(nn.Module):
    """Returns its input, a map and rows beside."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 32, 3)
        self.b = nn.Conv2d(32, 32, 3)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = F.relu(self.a(x))
        z = self.b(y)
        return {"input": x, "maps": [y, z, y], "rows": z.mean((2, 3))}


@pytest.mark.parametrize("backend", ["reference", "tvm"])
def test_every_result_of_a_model_is_looked_at(backend: str) -> None:
    model = Pair()
    x = torch.randn(2, 16, 8, 8)
    dense, found = model(x), _compiled(model, backend)(x)
    assert found["input"] is x
    for got, wanted in zip(found["maps"], dense["maps"], strict=True):
        assert got.stride() == wanted.stride()
    assert found["rows"].stride() == dense["rows"].stride()


# Randomness


class Drops(nn.Module):
    """Random numbers for a map, for tokens made of it, and for a map on its side."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(16, 16)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "input":
            x = self.drop(x)
        given, x = x, self.conv(x)
        if self.kind == "map":
            x = F.dropout(self.drop(x), 0.3, self.training) + torch.rand_like(x)
        if self.kind == "gate":
            x = self.drop(given * torch.sigmoid(x.mean((2, 3), keepdim=True)))
        if self.kind == "sum":
            x = self.drop(given + x) - self.drop(x + given)
        if self.kind == "turned":
            x = self.drop(x.transpose(2, 3))
        if self.kind == "tokens":
            tokens = self.drop(x.flatten(2).transpose(1, 2))
            x = self.linear(self.drop(F.relu(self.linear(tokens))))
        else:
            x = self.conv(x)
        return x


@pytest.mark.parametrize("weights", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("inputs", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("kind", ["input", "map", "gate", "sum", "turned", "tokens"])
def test_the_same_seed_drops_the_same_entries(
    kind: str, inputs: torch.memory_format, weights: torch.memory_format
) -> None:
    dense, sparse = pair(Drops(kind).to(memory_format=weights))  # type: ignore[call-overload]
    x = torch.randn(3, 16, 6, 8).contiguous(memory_format=inputs)
    torch.manual_seed(0)
    expected = dense(x)
    torch.manual_seed(0)
    torch.testing.assert_close(sparse(x), expected, rtol=1e-4, atol=1e-5)
