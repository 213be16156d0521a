"""Forwards that do more than compute: they run by their own code, and tracing leaves no trace."""

from __future__ import annotations

import linecache
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import dsgc
from dsgc.tracing.call_shape import CallShape
from dsgc.tracing.effects import Undone
from dsgc.tracing.trace import Traced, trace

X = torch.randn(2, 16, 9, 9)


class Two(nn.Module):
    """Two convolutions; `count`, `ema`, `calls`, `seen` and `dice` for what subclasses do."""

    count: Tensor
    ema: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(16, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 16, 3, padding=1)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("ema", torch.zeros(16))
        self.calls = 0
        self.seen: list[Any] = []
        self.aux: Any = None
        self.dice = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))  # type: ignore[no-any-return]


class WithoutGradients(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.a(x)
        return self.b(F.relu(x))  # type: ignore[no-any-return]


class WithGradients(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            return super().forward(x)


class GradientsByMode(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


class Decorated(Two):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class LeavesModeChanged(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch.set_grad_enabled(False)
        return y


class AsksForMode(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x * 2 if torch.is_grad_enabled() else x


class WithAutocast(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.a(x)
        return self.b(F.relu(x).float())  # type: ignore[no-any-return]


class WithoutAutocast(Two):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


class Checkpointed(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(self.a, x, use_reentrant=False))  # type: ignore[no-any-return]


class DrawsTorch(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if torch.rand(1).item() < 0.5 else x * 2


class DrawsNumpy(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if np.random.rand() < 0.5 else x * 2


class DrawsPython(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if random.random() < 0.5 else x * 2


class DrawsItsOwn(Two):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.dice.random() < 0.5 else x * 2


class DrawsNoise(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn(9))


class CountsInBuffer(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return super().forward(x)


class ChangesBuffer(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.ema.mul_(0.9).add_(x.detach().mean((0, 2, 3)))
        return super().forward(x)


class ChangesViewOfBuffer(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.ema.data[:4].copy_(x.detach()[0, :4, 0, 0])
        return super().forward(x)


class ChangesAllBuffers(Two):
    def forward(self, x: Tensor) -> Tensor:
        for buffer in self.buffers():
            buffer.data.add_(1)
        return super().forward(x)


class ReplacesData(Two):
    def forward(self, x: Tensor) -> Tensor:
        for buffer in self.buffers():
            buffer.data = buffer.data + 1
        return super().forward(x)


class SetsAttribute(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.aux = x.mean()
        return super().forward(x)


class SetsAttributeOfChild(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.a.latest = x.mean()
        return super().forward(x)


class Counts(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class Collects(Two):
    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.mean())
        return super().forward(x)


CASES = [
    (WithoutGradients, "changes the grad mode", "no_grad"),
    (WithGradients, "changes the grad mode", "enable_grad"),
    (GradientsByMode, "changes the grad mode", "set_grad_enabled"),
    (Decorated, "changes the grad mode", "@torch.no_grad"),
    (LeavesModeChanged, "changes the grad mode", "set_grad_enabled"),
    (AsksForMode, "without gradients", "is_grad_enabled"),
    (WithAutocast, "changes autocast", "autocast"),
    (WithoutAutocast, "changes autocast", "autocast"),
    (Checkpointed, "checkpoint", "checkpoint("),
    (DrawsTorch, "draws random numbers", "torch.rand"),
    (DrawsNumpy, "draws random numbers", "np.random"),
    (DrawsPython, "draws random numbers", "random.random"),
    (DrawsItsOwn, "draws random numbers", "dice.random"),
    (DrawsNoise, "draws random numbers", "torch.randn"),
    (CountsInBuffer, "changes a parameter or buffer by '+='", "self.count += 1"),
    (ChangesBuffer, "changes a parameter or buffer by 'mul_'", "mul_"),
    (ChangesViewOfBuffer, "changes a parameter or buffer by 'copy_'", "copy_"),
    (ChangesAllBuffers, "changes the tensor 'body.count'", ""),
    (ReplacesData, "changes the tensor 'body.count'", ""),
    (SetsAttribute, "sets the attribute 'body.aux'", "self.aux"),
    (SetsAttributeOfChild, "sets the attribute 'body.a.latest'", "latest"),
    (Counts, "sets the attribute 'body.calls'", "self.calls"),
    (Collects, "changes what is in 'body.seen'", "self.seen"),
]


class Around(nn.Module):
    """A convolution, a module to look at, and another convolution."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(16, 16, 1)
        self.body = body
        self.last = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(self.first(x)))  # type: ignore[no-any-return]


def traced(model: nn.Module, path: str = "") -> Traced:
    call, _ = CallShape.of(model.get_submodule(path), (X,), {})
    return trace(model, path, call)


def everything(model: nn.Module) -> list[Any]:
    """All that tracing must leave as it is."""
    found: list[Any] = []
    for module in model.modules():
        plain = {k: v for k, v in module.__dict__.items() if not isinstance(v, random.Random)}
        found.append({k: list(v) if isinstance(v, list) else v for k, v in plain.items()})
        found.append([(name, b.clone().tolist()) for name, b in module.named_buffers()])
    found += [torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]
    found.append([m.dice.getstate() for m in model.modules() if isinstance(m, Two)])
    found += [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
    return found


def sparse_of(model: nn.Module, sparsity: float = 0.5) -> dsgc.SparseModule:
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    rules = dict.fromkeys(convolutions, sparsity)
    config = dsgc.SparsityConfig(sparsity, rules=rules)
    return dsgc.compile(model, config=config, backend="reference")


@pytest.mark.parametrize(
    ("kind", "reason", "line"), CASES, ids=lambda c: getattr(c, "__name__", "")
)
@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_module_runs_by_its_own_code_and_says_why(
    kind: type[Two], reason: str, line: str, around: Callable[[], Any]
) -> None:
    model = Around(kind())
    before = everything(model)
    with around():
        result = traced(model)
    assert everything(model) == before
    assert list(result.untraced) == ["body"]
    assert reason in result.untraced["body"]
    if line:
        number = re.search(rf"{re.escape(__file__)}:(\d+)", result.untraced["body"])
        assert number is not None
        assert line in linecache.getline(__file__, int(number[1]))


@pytest.mark.parametrize("kind", [case[0] for case in CASES if case[0] is not Checkpointed])
def test_model_does_what_the_dense_model_does(kind: type[Two]) -> None:
    torch.manual_seed(0)
    dense = kind()
    sparse = sparse_of(dense, sparsity=1e-4)  # every block is computed
    results = []
    for model in (dense, sparse):
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        values = [_called(model, training=call < 3) for call in range(6)]
        with torch.no_grad():
            values.append(_called(model, training=False))
        values += [b.clone() for name, b in model.named_buffers() if "dsgc" not in name]
        gradients = [p.grad for p in dense.parameters()]
        results.append(
            ([g is None for g in gradients], values, [g for g in gradients if g is not None])
        )
        model.zero_grad()
    assert "" in sparse.untraced
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[1][1:], results[0][1:], rtol=2e-2, atol=2e-2)


def _called(model: nn.Module, training: bool) -> Tensor:
    model.train(training)
    before = torch.is_grad_enabled()
    y = model(X)
    torch.set_grad_enabled(before)
    if before and y.requires_grad:
        y.square().mean().backward()
    return y.detach()  # type: ignore[no-any-return]


def test_attributes_that_a_forward_sets_are_those_of_the_last_call() -> None:
    model = SetsAttribute()
    sparse = sparse_of(model)
    sparse(X)
    inside = sparse._dense[0]
    assert isinstance(inside, SetsAttribute)
    torch.testing.assert_close(inside.aux, X.mean())
    sparse(X + 1)
    torch.testing.assert_close(inside.aux, X.mean() + 1)


def test_undone_inside_fake_mode() -> None:
    torch.manual_seed(7)
    with FakeTensorMode(allow_non_fake_inputs=True), Undone(Two()) as effects:
        torch.randn(3)
        assert effects.effect() == ("", "")
    torch.testing.assert_close(torch.randn(3), torch.randn(3, generator=_seeded(7)))


def _seeded(seed: int) -> torch.Generator:
    generator = torch.Generator()
    generator.manual_seed(seed)
    return generator


def test_compiling_leaves_the_random_streams_alone() -> None:
    sparse = sparse_of(DrawsPython(), 1e-4)
    random.seed(5)
    sparse(X)
    drawn = random.random()
    random.seed(5)
    random.random()
    assert drawn == random.random()


def test_parent_that_sets_the_mode_is_blamed_and_not_its_child() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Two()

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                return self.inner(x)  # type: ignore[no-any-return]

    assert list(traced(Around(Frozen())).untraced) == ["body"]


def test_modes_hold_for_sparse_children() -> None:
    model = WithoutGradients()
    sparse = sparse_of(model)
    sparse(X).sum().backward()
    assert sparse.decisions["a"].sparse
    assert sparse.decisions["b"].sparse
    assert model.a.weight.grad is None
    assert model.b.weight.grad is not None


def test_code_that_catches_everything_is_noticed() -> None:
    class Stubborn(Two):
        def forward(self, x: Tensor) -> Tensor:
            try:
                with torch.no_grad():
                    x = self.a(x)
            except Exception:
                return x
            return self.b(x)  # type: ignore[no-any-return]

    assert "grad mode" in traced(Around(Stubborn())).untraced["body"]


def test_modules_with_hooks_run_by_their_own_code() -> None:
    model = Around(Two())
    seen: list[Tensor] = []
    model.body.register_forward_hook(lambda *call: seen.append(call[2]))
    assert "hooks" in traced(model).untraced["body"]
    assert seen == []
    with pytest.raises(dsgc.TraceError, match="body has hooks"):
        traced(model, "body")
    sparse = sparse_of(model)
    seen.clear()
    for _ in range(3):
        sparse(X)
    assert len([value for value in seen if type(value) is Tensor]) == 3
