"""In-place operations of the user's code on what sparse parts return."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from dsgc.codegen import cpu_kernels
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from tests.passes.agreement import unsettle


class Two(nn.Module):
    """Two convolutions; `cut` keeps tracing out, so that the parts run by this code."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 32, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.b = nn.Conv2d(32, 24, 3, padding=1)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        if self.cut and x.sum() > 1e9:
            return x
        y: Tensor = self.b(self.relu(self.a(x)))
        return y


def _sparse(model: nn.Module, backend: str) -> dsgc.SparseModule:
    config = dsgc.SparsityConfig(0.5, rules={"a": 0.5, "b": 0.5}, block=8)
    return dsgc.compile(model, config=config, backend=backend)


def _step(cut: bool, backend: str, change: Callable[[Tensor], object], size: int) -> list[Tensor]:
    torch.manual_seed(3)
    model = Two(cut).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    sparse = _sparse(model, backend)
    x = torch.randn(4, 16, size, size, requires_grad=True)
    y = sparse(x)
    change(y)
    y.square().mean().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in sparse.parameters() if p.grad is not None)]


@pytest.mark.parametrize("size", [6, 56])  # small results, and large ones that come from the pool
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize(
    "change", [lambda y: y.add_(1), F.relu_, lambda y: y[:, ::2].mul_(3)], ids="+*["
)
def test_results_can_be_changed_in_place(
    cut: bool, change: Callable[[Tensor], object], size: int
) -> None:
    found, wanted = (_step(cut, backend, change, size) for backend in ("tvm", "reference"))
    assert len(found) == 6
    for got, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


class Both(nn.Module):
    """Returns what is read inside the graph as well, so that backward may need it."""

    def __init__(self, *between: nn.Module, channels: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 32, 3, padding=1)
        self.between = nn.Sequential(*between)
        self.second = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.between(self.first(x))
        return y, self.second(y)


@pytest.mark.parametrize("sparse_first", [False, True])
@pytest.mark.parametrize(
    "between",
    [(), (nn.ReLU,), (nn.GELU,), (lambda: nn.BatchNorm2d(32), nn.ReLU), (lambda: nn.MaxPool2d(2),)],
    ids=["nothing", "relu", "gelu", "norm", "pool"],
)
def test_no_saved_value_changes_unnoticed(
    sparse_first: bool, between: tuple[Callable[[], nn.Module], ...]
) -> None:
    """What is written over is noticed, or is not what backward needs."""
    model = unsettle(Both(*(make() for make in between)))
    config = dsgc.SparsityConfig(
        0.5, rules={"first": 0.5 if sparse_first else None, "second": 0.5}, block=8
    )
    sparse = dsgc.compile(model, config=config, backend="tvm").eval()
    x = torch.randn(2, 16, 8, 8)
    sparse(x)[1].square().mean().backward()
    wanted = {name: p.grad.clone() for name, p in sparse.named_parameters() if p.grad is not None}
    sparse.zero_grad()
    inside, result = sparse(x)
    inside.zero_()
    noticed = ""
    try:
        result.square().mean().backward()
    except RuntimeError as error:
        noticed = str(error)
    if noticed:
        assert "modified by an inplace operation" in noticed
        return
    for name, parameter in sparse.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name])


@pytest.mark.parametrize("shape", [(3, 5), (600, 500)])
def test_new_memory_is_no_view(shape: tuple[int, int]) -> None:
    cpu_kernels()
    libraries = Libraries(KernelCache())
    assert not libraries.empty(*shape)._is_view()
    assert not libraries.empty_like(torch.empty(shape).t())._is_view()
