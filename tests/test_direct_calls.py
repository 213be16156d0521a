"""Training steps that call kernels without torch's dispatcher, and when they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import dsgc
from dsgc.direct_calls import call_directly

X = torch.randn(6, 3, 12, 12, generator=torch.Generator().manual_seed(4))


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 48, 3), nn.ReLU(), nn.BatchNorm2d(48, momentum=None),
        nn.Flatten(), nn.Linear(768, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


def _sparse(block: int = 8) -> dsgc.SparseModule:
    config = dsgc.SparsityConfig(
        0.6, rules={"3": 0.6, "7": 0.6, "11": 0.5}, block=block, selector="drs"
    )
    return dsgc.compile(_net(), config=config, example_inputs=(X,), backend="tvm")


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that torch's dispatcher is asked for."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def _step(sparse: dsgc.SparseModule) -> list[Tensor]:
    sparse.zero_grad()
    x = X.clone().requires_grad_()
    out = sparse(x)
    out.square().mean().backward()
    found = [out.detach(), x.grad, *(p.grad for p in sparse.parameters()), *sparse.buffers()]
    return [one.clone() for one in found if one is not None]


@pytest.mark.parametrize("block", [1, 8, 16])
def test_steps_are_those_of_the_operators_to_the_bit(block: int) -> None:
    sparse = _sparse(block)
    other = copy.deepcopy(sparse)
    for _ in range(3):
        with _Seen() as seen:
            expected = _step(other)
        assert "dsgc_cpu.conv2d.default" in seen.names
        found = _step(sparse)
        assert len(found) == len(expected)
        assert all(map(torch.equal, found, expected))


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what was called directly since; filled by calls."""
    called: list[str] = []

    def counting(*arguments: Any) -> Callable[..., Any]:
        run = call_directly(*arguments)

        def noting(*tensors: Tensor) -> Any:
            called.append("directly")
            return run(*tensors)

        return noting

    monkeypatch.setattr("dsgc.engine.call_directly", counting)
    return called


def test_who_follows_operations_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called = _counted(monkeypatch)
    sparse = _sparse()
    _step(sparse)
    assert called == ["directly"]
    with torch.profiler.profile() as profile:
        _step(sparse)
    assert any(event.name == "dsgc_cpu::conv2d" for event in profile.events())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    _step(sparse)
    handle.remove()
    assert called == ["directly"]
    _step(sparse)
    assert called == ["directly"] * 2


class _Tagged(nn.Parameter):
    """Somebody's parameters, whose operations they follow."""

    seen: ClassVar[set[str]] = set()

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        cls.seen.add(str(func))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def test_parameters_of_a_class_of_their_own_are_given_to_operators(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = _counted(monkeypatch)
    sparse = _sparse()
    layer = sparse.get_submodule("3")
    assert isinstance(layer, nn.Conv2d)
    _Tagged.seen.clear()
    layer.weight = _Tagged(layer.weight.detach())
    _step(sparse)
    assert not called
    assert any("dsgc_cpu.conv2d" in name for name in _Tagged.seen)


def test_replaced_parameters_and_modes_of_norms_are_followed() -> None:
    sparse = _sparse()
    _step(sparse)
    layer, norm = sparse.get_submodule("3"), sparse.get_submodule("4")
    assert isinstance(layer, nn.Conv2d)
    layer.weight = nn.Parameter(2 * layer.weight.detach())
    norm.eval()
    twin = _sparse()
    twin.load_state_dict(sparse.state_dict())
    twin.get_submodule("4").eval()
    with _Seen():
        expected = _step(twin)
    found = _step(sparse)
    assert layer.weight.grad is not None
    assert all(map(torch.equal, found, expected))


def test_saved_tensors_go_through_the_hooks_of_others() -> None:
    sparse = _sparse()
    expected, kept = _step(copy.deepcopy(sparse)), 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 1
        return tensor.clone()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        found = _step(sparse)
    assert kept > 10
    assert all(map(torch.equal, found, expected))
