"""First calls from several threads, and other models that run meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsgc
from dsgc.kept_graphs import Gate
from tests.test_effects import Two, sparse_of

X = torch.randn(2, 16, 9, 9)


def all_at_once(*bodies: Callable[[], object]) -> list[BaseException]:
    """Run all in threads that start together; what they raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(bodies))

    def run(body: Callable[[], object]) -> None:
        barrier.wait()
        try:
            body()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(body,), daemon=True) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return errors


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_first_calls_at_once(backend: str) -> None:
    torch.manual_seed(0)
    batches = [torch.randn(2, 16, size, size) for size in (9, 9, 7, 8)]
    for _ in range(3):
        model = nn.Sequential(Two(), nn.BatchNorm2d(16), Two()).eval()
        convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        config = dsgc.SparsityConfig(0.5, rules=dict.fromkeys(convolutions, 0.5))
        sparse = dsgc.compile(model, config=config, backend=backend)
        found: dict[int, Tensor] = {}

        def call(i: int, sparse: Any = sparse, found: dict[int, Tensor] = found) -> None:
            found[i] = sparse(batches[i])

        assert all_at_once(*[lambda i=i: call(i) for i in range(4)]) == []
        for i, batch in enumerate(batches):
            torch.testing.assert_close(found[i], sparse(batch))
        assert not any(module.training for module in sparse.modules())


def test_skeletons_at_once() -> None:
    class Untraceable(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() < 1e9 else x

    sparse = sparse_of(Untraceable()).eval()
    assert all_at_once(*[lambda: sparse(X)] * 4) == []
    assert set(sparse.untraced) == {""}


def test_other_models_run_while_one_is_traced() -> None:
    other = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    results: list[object] = []

    class Busy(Two):
        def forward(self, x: Tensor) -> Tensor:
            results.extend(all_at_once(lambda: results.append(other(torch.ones(2, 4)))))
            return super().forward(x)

    sparse_of(nn.Sequential(Busy()))(X)
    assert results
    for result in results:
        torch.testing.assert_close(result, other(torch.ones(2, 4)))


def test_nobody_builds_while_another_runs() -> None:
    gate, order = Gate(), []

    def build() -> None:
        with gate.building(), gate.building(), gate.running():
            order.append("built")

    builder = threading.Thread(target=build, daemon=True)
    with gate.running():
        builder.start()
        builder.join(0.2)
        order.append("ran")
    builder.join(60)
    assert order == ["ran", "built"]


def test_nobody_runs_while_another_builds() -> None:
    gate, order = Gate(), []

    def run() -> None:
        with gate.running():
            order.append("ran")

    runner = threading.Thread(target=run, daemon=True)
    with gate.building():
        runner.start()
        runner.join(0.2)
        order.append("built")
    runner.join(60)
    assert order == ["built", "ran"]


def test_calls_that_all_have_to_build_do_not_wait_for_each_other() -> None:
    gate, barrier = Gate(), threading.Barrier(3)
    building: list[int] = []

    def call() -> None:
        with gate.running():
            barrier.wait()
            with gate.building():
                building.append(1)
                assert len(building) == 1
                building.pop()
            with gate.building():
                pass

    assert all_at_once(call, call, call) == []


def test_a_gate_opens_again_after_errors() -> None:
    gate = Gate()
    with pytest.raises(ValueError, match="once"), gate.running(), gate.building():
        raise ValueError("once")
    with pytest.raises(ValueError, match="twice"), gate.running():
        raise ValueError("twice")

    def build() -> None:
        with gate.building():
            pass

    assert all_at_once(build, build) == []
