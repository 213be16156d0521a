"""Training steps that call kernels without torch's dispatcher, and when they do not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
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

    monkeypatch.setattr("dsgc.program.call_directly", counting)
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


def _net_without_linear_layers() -> dsgc.SparseModule:
    """A stem that is made again in backward, batch norms, pooling and an unpacking."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.Conv2d(64, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 24, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    config = dsgc.SparsityConfig(0.6, rules={"3": 0.6, "7": 0.6}, block=8)
    return dsgc.compile(model, config=config, example_inputs=(X,), backend="tvm")


def test_many_backward_passes_at_once() -> None:
    sparse = _net_without_linear_layers()
    weight = dict(sparse.named_parameters())["3.weight"]
    out = sparse(X)
    many = torch.randn(3, *out.shape)
    (found,) = torch.autograd.grad(out, weight, many, is_grads_batched=True, retain_graph=True)
    for one, grad in zip(found, many, strict=True):
        (expected,) = torch.autograd.grad(out, weight, grad, retain_graph=True)
        torch.testing.assert_close(one, expected)


def test_backward_alone_on_tensors_without_memory() -> None:
    sparse = _net_without_linear_layers()
    out = sparse(X)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        grad = mode.from_tensor(torch.ones(out.shape))
        found = torch.autograd.grad(out, list(sparse.parameters()), grad)
    for one, parameter in zip(found, sparse.parameters(), strict=True):
        assert isinstance(one, FakeTensor)
        assert one.shape == parameter.shape


def test_nodes_of_autograd_have_the_names_of_operators() -> None:
    names, work = set(), [_net_without_linear_layers()(X).grad_fn]
    while work:
        if (node := work.pop()) is not None and node.name() not in names:
            names.add(node.name())
            work += [source for source, _ in node.next_functions]
    assert {"conv2dBackward", "pool2dBackward", "unpackBackward"} <= names


def test_hooks_of_all_modules_in_backward_see_every_step() -> None:
    sparse, seen = _sparse(), set()
    handle = nn.modules.module.register_module_full_backward_hook(
        lambda module, *_: seen.add(type(module).__name__)
    )
    try:
        _step(sparse)
    finally:
        handle.remove()
    assert "PackedBatchNorm" in seen


def test_eps_may_be_a_tensor() -> None:
    sparse = _sparse()
    norm = sparse.get_submodule("4")
    norm.eps = torch.tensor(1e-5)
    _step(sparse)
