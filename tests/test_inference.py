"""Inference runs programs of the lowered graphs: the same results, whatever happened to weights."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import dsgc
from dsgc.inference import _ForkedLock
from dsgc.programs.live import LiveProgram

X = torch.randn(6, 5, 12, 12, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(5, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.conv1 = nn.Conv2d(32, 64, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 48, 3, padding=1)
        self.fc = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.conv2(x)).mean((2, 3))
        return self.fc(x)


def trained(model: nn.Module | None = None, selector: str = "svd") -> dsgc.SparseModule:
    """A sparse network in eval mode whose running statistics are not those of the beginning."""
    torch.manual_seed(0)
    config = dsgc.SparsityConfig(rules={"re:.*conv.*": 0.6}, block=8, selector=selector)
    sparse = dsgc.compile(model or Net(), config=config, backend="tvm")
    for _ in range(2):
        sparse(X)
    return sparse.eval()


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was done with programs: "made" and "run"."""
    done: list[str] = []
    make, call = LiveProgram.__init__, LiveProgram.__call__

    def made(self: LiveProgram, *args: Any) -> None:
        make(self, *args)
        done.append("made")

    def run(self: LiveProgram, *args: Any) -> Any:
        done.append("run")
        return call(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(LiveProgram, "__init__", made)
        patch.setattr(LiveProgram, "__call__", run)
        yield done


def by_graph(sparse: dsgc.SparseModule, x: Tensor) -> Any:
    """What the lowered graph itself makes: with gradients there is no program."""
    return sparse(x.clone().requires_grad_())


@torch.no_grad()
def assert_right(sparse: dsgc.SparseModule, x: Tensor = X) -> None:
    with torch.enable_grad():
        expected = by_graph(sparse, x).detach()
    torch.testing.assert_close(sparse(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 4, 5, 300])
def test_a_program_computes_what_the_graph_does(
    batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = trained()
    x = torch.randn(batch, 5, 12, 12)
    with counted(monkeypatch) as done:
        assert_right(sparse, x)
    assert done == ["made", "run"]


def test_equal_inputs_have_equal_results_from_the_first_call_on() -> None:
    sparse = trained()
    with torch.no_grad():
        first = sparse(X)
        assert all(torch.equal(sparse(X), first) for _ in range(3))
        assert torch.equal(sparse(X.to(memory_format=torch.channels_last)), first)
    with torch.inference_mode():
        assert torch.equal(sparse(X), first)


def test_frozen_networks_need_no_context() -> None:
    sparse = trained().requires_grad_(False)
    found = sparse(X)
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(sparse(X), found)


def test_gradients_flow_in_eval_mode() -> None:
    sparse = trained()
    sparse(X).sum().backward()
    assert all(p.grad is not None for p in sparse.parameters())


def _step(sparse: dsgc.SparseModule) -> None:
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.5)
    sparse(X).square().sum().backward()
    optimizer.step()


def _fill_through_data(sparse: dsgc.SparseModule) -> None:
    sparse.conv2.weight.data.mul_(2.0)


def _write_with_numpy(sparse: dsgc.SparseModule) -> None:
    sparse.fc.bias.detach().numpy()[:] += 1.0


def _replace(sparse: dsgc.SparseModule) -> None:
    sparse.conv1.weight = nn.Parameter(sparse.conv1.weight.detach() * -1.0)


def _set_data(sparse: dsgc.SparseModule) -> None:
    sparse.conv1.weight.data = sparse.conv1.weight.detach() * -1.0


def _move_statistics(sparse: dsgc.SparseModule) -> None:
    sparse.norm1.running_mean += 1.0


def _set_eps(sparse: dsgc.SparseModule) -> None:
    sparse.norm1.eps = 1.0


def _load(sparse: dsgc.SparseModule) -> None:
    state = {name: value.clone() for name, value in sparse.state_dict().items()}
    state["stem.weight"] *= -1.0
    sparse.load_state_dict(state)


def _train(sparse: dsgc.SparseModule) -> None:
    sparse.train()
    _step(sparse)
    sparse.eval()


def _change_a_few_numbers(sparse: dsgc.SparseModule) -> None:
    sparse.fc.weight.data[:, 7] += 5.0
    sparse.eval()


def _swap_filters(sparse: dsgc.SparseModule) -> None:
    weight = sparse.conv1.weight.data
    weight[[1, 2]] = weight[[2, 1]].clone()
    sparse.norm1.weight.data[:2] *= 3.0
    sparse.eval()


def _cut_channels_off(sparse: dsgc.SparseModule) -> None:
    sparse.conv2.weight.data[20:28].zero_()
    sparse.norm.weight.data[5:9].zero_()


def _reach_in(sparse: dsgc.SparseModule) -> None:
    sparse.fc = nn.Linear(48, 10)


@pytest.mark.parametrize(
    "write",
    [
        _step, _fill_through_data, _write_with_numpy, _replace, _set_data, _move_statistics,
        _set_eps, _load, _train, _reach_in, _change_a_few_numbers,
        _swap_filters, _cut_channels_off,
    ],
)  # fmt: skip
def test_whatever_is_written_counts_at_once(write: Callable[[dsgc.SparseModule], None]) -> None:
    sparse = trained()
    with torch.no_grad():
        before = sparse(X)
    write(sparse)
    with torch.no_grad():
        assert not torch.allclose(sparse(X), before, atol=1e-3)
    assert_right(sparse)


class Scaled(Net):
    """Multiplies by tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.ones(1, 10)
        self.further = [torch.zeros(1, 10)]

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.scale + self.further[0]


def _write_to_an_attribute(sparse: dsgc.SparseModule) -> None:
    sparse.scale.mul_(3.0)


def _write_to_a_list(sparse: dsgc.SparseModule) -> None:
    sparse.further[0][0, 3] = 2.0


def _write_to_an_attribute_with_numpy(sparse: dsgc.SparseModule) -> None:
    sparse.scale.numpy()[:] = 2.0


@pytest.mark.parametrize(
    "write", [_write_to_an_attribute, _write_to_a_list, _write_to_an_attribute_with_numpy]
)
def test_tensors_that_are_plain_attributes_count_as_weights(
    write: Callable[[dsgc.SparseModule], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = trained(Scaled())
    with torch.no_grad(), counted(monkeypatch) as done:
        before = sparse(X)
        write(sparse)
        assert not torch.allclose(sparse(X), before, atol=1e-3)
        sparse(X)
    assert done == ["made", "run", "made", "run"]  # a graph in between: it may change again
    assert_right(sparse)


def test_drawn_projections_count_as_weights() -> None:
    sparse = trained(selector="drs")
    with torch.no_grad():
        before = sparse(X)
    for selector in sparse.get_submodule("dsgc_selectors").children():
        selector.get_buffer("projection")[:8] = 0
    sparse.eval()
    with torch.no_grad():
        assert not torch.equal(sparse(X), before)
    assert_right(sparse)


def test_weights_that_change_all_the_time_are_not_worth_a_program(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sparse = trained()
    with counted(monkeypatch) as done, torch.no_grad():
        for _ in range(12):
            sparse.fc.bias.add_(1.0)
            sparse(X)
        assert 0 < done.count("made") < 4
        for _ in range(40):
            sparse(X)
        assert done[-1] == "run"
        assert_right(sparse)


def test_programs_are_dropped_when_training_goes_on() -> None:
    sparse = trained()
    with torch.no_grad():
        sparse(X)
    programs = [weakref.ref(one) for one in gc.get_objects() if type(one) is LiveProgram]
    assert any(program() is not None for program in programs)
    sparse.train()
    gc.collect()
    assert all(program() is None for program in programs)


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_who_follows_operations_sees_them() -> None:
    sparse = trained()
    with torch.no_grad():
        sparse(X)
        with _Follow() as follow:
            sparse(X)
        assert any("dsgc_cpu.conv2d" in name for name in follow.seen)
        with FlopCounterMode(display=False) as flops:
            sparse(X)
        assert flops.get_total_flops() > 0


def test_hooks_run() -> None:
    sparse = trained()
    with torch.no_grad():
        before = sparse(X)
        calls: list[torch.Size] = []
        handle = sparse.conv1.register_forward_hook(lambda *a: calls.append(a[2].shape))
        sparse(X)
        assert calls == [torch.Size((6, 64, 12, 12))]
        handle.remove()
        torch.testing.assert_close(sparse(X), before, rtol=1e-5, atol=1e-5)
        assert len(calls) == 1


class Noting(nn.Module):
    """Code that is not to be run more often than the model is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        return F.dropout(x, 0.5)


def test_own_code_runs_once_a_call() -> None:
    model = Net()
    model.noting = Noting()
    sparse = trained(_Noted(model))
    noting = sparse.get_submodule("net.noting")
    assert isinstance(noting, Noting)
    noting.calls.clear()
    torch.manual_seed(3)
    with torch.no_grad():
        first = sparse(X)
        torch.manual_seed(3)
        assert torch.equal(sparse(X), first)
    assert noting.calls == [6, 6]


class _Noted(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(self.net.noting(x))  # type: ignore[operator]


def test_part_of_the_model_in_training_mode_is_no_inference() -> None:
    sparse = trained()
    with torch.no_grad():
        sparse(X)
        sparse.norm1.train()
        before = sparse.norm1.running_mean.clone()
        sparse(X)
        assert not torch.equal(sparse.norm1.running_mean, before)


def test_held_selections_are_kept() -> None:
    sparse = trained()
    with torch.no_grad(), sparse.hold_selection():
        first = sparse(X)
        again = sparse(X * 2.0)
    assert_right(sparse)
    assert first.shape == again.shape
    assert set(sparse.selections(X)) == {"conv1", "conv2"}


class Several(Net):
    def forward(self, x: Tensor) -> Any:
        y = F.relu(self.norm1(self.conv1(F.relu(self.norm(self.stem(x))))))
        return {"map": y, "more": [self.fc(F.relu(self.conv2(y)).mean((2, 3))), (y.mean((2, 3)),)]}


def test_results_are_arranged_as_the_model_arranges_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = trained(Several())
    with torch.no_grad(), counted(monkeypatch) as done:
        found = sparse(X)
        assert done == ["made", "run"]
        with torch.enable_grad():
            expected = by_graph(sparse, X)
    assert type(found) is dict
    assert [type(one) for one in (found["more"], found["more"][1])] == [list, tuple]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


class Unusual(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return torch.cumsum(y, 1)


def test_what_no_program_can_hold_runs_as_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = trained(Unusual())
    with torch.no_grad(), counted(monkeypatch) as done:
        assert sparse(X).shape == (6, 10)
    assert done == []
    assert_right(sparse)


class Twice(Net):
    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return y, y


def test_a_tensor_given_back_twice_stays_one() -> None:
    sparse = trained(Twice())
    with torch.no_grad():
        first, second = sparse(X)
    assert first is second


def test_inputs_that_are_no_plain_batch() -> None:
    sparse = trained()
    with torch.no_grad():
        whole = sparse(X)
        flipped = torch._neg_view(-X)
        torch.testing.assert_close(sparse(flipped), whole)
        torch.testing.assert_close(sparse(X.flip(0).flip(0)), whole)
        torch.testing.assert_close(sparse(X.repeat(1, 1, 2, 2)[..., :12, :12]), whole)
        assert sparse(X[:0]).shape == (0, 10)
        assert sparse(X).data_ptr() != sparse(X).data_ptr()


def test_results_may_be_written_to() -> None:
    sparse = trained()
    with torch.no_grad():
        first = sparse(X)
        kept = first.clone()
        first.zero_()
        assert torch.equal(sparse(X), kept)


def test_several_threads_at_once() -> None:
    sparse = trained()
    inputs = [torch.randn(n, 5, 12, 12) for n in (1, 2, 3, 6) * 3]
    with torch.no_grad():
        expected = [sparse(x) for x in inputs]
    found: dict[int, Tensor] = {}

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(5):
                found[i] = sparse(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, one in enumerate(expected):
        torch.testing.assert_close(found[i], one, rtol=1e-5, atol=1e-5)


def test_the_profiler_sees_layers() -> None:
    sparse = trained()
    with torch.no_grad():
        sparse(X)
        with torch.profiler.profile() as profile:
            sparse(X)
    names = {event.name for event in profile.events()}
    assert any(name.startswith("conv1: ") for name in names)


def test_autocast_computes_in_float32() -> None:
    sparse = trained()
    with torch.no_grad():
        expected = sparse(X)
        with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="autocast"):
            found = sparse(X)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_copies_have_programs_of_their_own() -> None:
    import copy

    sparse = trained()
    with torch.no_grad():
        before = sparse(X)
        twin = copy.deepcopy(sparse)
        twin.fc.bias.add_(1.0)
        torch.testing.assert_close(twin(X), before + 1.0, rtol=1e-5, atol=1e-5)
        assert torch.equal(sparse(X), before)


class Doubled(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).mul(2.0)


class Weighted(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(input, weight * 2.0, bias, self.stride, self.padding)


class Halved(nn.Sigmoid):
    def forward(self, input: Tensor) -> Tensor:
        if float(input.sum()) > 1e30:
            return input
        return super().forward(input) * 0.5


def _own_forward(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x * 2.0
    return module


@pytest.mark.parametrize(
    "layer",
    [
        lambda: Doubled(32, 32, 1), lambda: Weighted(32, 32, 1), Halved,
        lambda: _own_forward(nn.ReLU6()), lambda: _own_forward(nn.Conv2d(32, 32, 1)),
        lambda: nn.Sequential(Halved()),
    ],
)  # fmt: skip
def test_layers_with_code_of_their_own_run_it(layer: Callable[[], nn.Module]) -> None:
    model = Net()
    model.norm = nn.Sequential(model.norm, layer())  # type: ignore[assignment]
    assert_right(trained(model))


def test_weights_that_are_not_numbers_are_seen() -> None:
    sparse = trained()
    with torch.no_grad():
        sparse.conv1.weight.fill_(torch.nan)
        assert sparse(X).isnan().any()


def test_weights_in_the_place_of_others_for_one_call() -> None:
    sparse = trained()
    weight = sparse.conv1.weight.detach()
    for channel in range(8):
        other = weight.clone()
        other[:, channel] = 0.0
        with torch.no_grad():
            for _ in range(2):
                found = torch.func.functional_call(sparse, {"conv1.weight": other}, (X,))
        expected = torch.func.functional_call(
            sparse, {"conv1.weight": other}, (X.clone().requires_grad_(),)
        )
        torch.testing.assert_close(found, expected.detach(), rtol=1e-5, atol=1e-5)
        del other
    assert_right(sparse)


class Folded(Net):
    def __init__(self, how: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Any:
        return self.how(super().forward(x))


@pytest.mark.parametrize(
    "how",
    [
        lambda y: y.reshape(6, -1),
        lambda y: y.view(torch.int32),
        lambda y: y + y.view(y.size(0), 10, 1, 1),
        lambda y: y.view(-1, 10, 1, 1)[:, :, :: y.size(1) // 5, :: y.size(1)],
        lambda y: F.pad(y.view(-1, 10, 1, 1), (0, 0, 0, 0, y.size(1) // 2, 1)),
    ],
)
def test_shapes_that_depend_on_inputs(how: Callable[[Tensor], Tensor]) -> None:
    sparse = trained(Folded(how))
    for batch in (6, 12):
        x = torch.randn(batch, 5, 12, 12)
        expected = by_graph(sparse, x).detach()
        with torch.no_grad():
            found = sparse(x)
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
        torch.testing.assert_close(found.float(), expected.float(), rtol=1e-5, atol=1e-5)


def test_without_its_kernels_the_graph_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = trained()

    def fail(*args: Any) -> None:
        raise dsgc.KernelError("no compiler")

    with monkeypatch.context() as patch, torch.no_grad():
        patch.setattr(LiveProgram, "__init__", fail)
        with pytest.warns(UserWarning, match="no compiler"):
            found = sparse(X)
        assert torch.equal(sparse(X), found)
    torch.testing.assert_close(found, by_graph(sparse, X).detach(), rtol=1e-5, atol=1e-5)


def test_forward_derivatives_are_refused_as_ever() -> None:
    sparse = trained()
    for gradients in (False, True):
        with (
            torch.set_grad_enabled(gradients),
            forward_ad.dual_level(),
            pytest.raises(dsgc.UnsupportedError, match="forward mode"),
        ):
            sparse(forward_ad.make_dual(X, torch.ones_like(X)))  # type: ignore[no-untyped-call]


def test_hooks_of_all_modules_run() -> None:
    sparse = trained()
    with torch.no_grad():
        before = sparse(X)
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, out: out * 2.0 if isinstance(module, nn.Linear) else None
        )
        try:
            changed = sparse(X)
        finally:
            handle.remove()
    torch.testing.assert_close(changed, before * 2.0, rtol=1e-5, atol=1e-5)


def test_a_lock_is_free_in_a_child() -> None:
    lock = _ForkedLock()
    with lock.held():
        child = os.fork()
        if child == 0:
            os._exit(0 if lock.held().acquire(timeout=5) else 1)
    assert os.waitpid(child, 0)[1] == 0


class Through(Net):
    def forward(self, x: Tensor) -> Any:
        return x, super().forward(x)


def test_inputs_that_are_given_back_stay_themselves() -> None:
    with torch.no_grad():
        assert trained(Through())(X)[0] is X


def test_inputs_and_results_can_be_resized() -> None:
    sparse = trained()
    x = X.clone()
    with torch.no_grad():
        found = sparse(x)
        found.resize_(1000)
        x.resize_(1, 5, 12, 12)
        assert sparse(x).shape == (1, 10)
        sparse.norm.running_mean.resize_(32)


def test_programs_for_many_sizes_make_room_for_each_other() -> None:
    sparse = trained()
    sizes = (8, 10, 12, 14, 16, 18)
    with torch.no_grad():
        for size in sizes:
            sparse(torch.randn(2, 5, size, size))
    kept = [about.made for about in sparse._engine.inference._graphs.values()]
    assert sum(len(made) for made in kept) == 4
    assert_right(sparse, torch.randn(2, 5, 8, 8))


def test_many_sizes_in_turn_do_not_make_programs_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sparse = trained()
    with torch.no_grad(), counted(monkeypatch) as done:
        for _ in range(20):
            for size in (8, 10, 12, 14, 16, 18):
                sparse(torch.randn(2, 5, size, size))
    assert 6 <= done.count("made") < 40


def test_nothing_outlives_the_module() -> None:
    sparse = trained()
    with torch.no_grad():
        sparse(X)
    made = sparse._engine.inference._graphs
    programs = [weakref.ref(one.program) for about in made.values() for one in about.made.values()]
    gc.collect()
    gc.disable()
    try:
        del sparse, made
        assert [program() for program in programs] == [None]
    finally:
        gc.enable()


def test_a_report_leaves_programs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = trained()
    with torch.no_grad(), counted(monkeypatch) as done:
        sparse(X)
        sparse.report(X, rounds=1)
        sparse(X)
    assert done.count("made") == 1


def test_a_smaller_last_batch_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = trained()
    with torch.no_grad(), counted(monkeypatch) as done:
        for _ in range(3):
            for _ in range(30):
                sparse(X)
            sparse(X[:2])
            sparse.train().eval()
    assert done.count("made") == 6


def test_a_stride_that_is_set_later_counts() -> None:
    sparse = trained()
    sparse.conv2.stride = (2, 2)
    dense = sparse.to_dense()
    with torch.no_grad():
        assert sparse(X).shape == dense(X).shape
    assert_right(sparse)


def test_a_report_says_what_a_call_takes() -> None:
    sparse = trained()
    found = sparse.report(X, rounds=2)
    assert found.call is not None
    assert min(found.call) > 0.0
    assert "a call takes" in str(found)
    assert sparse.train().report(X, rounds=1).call is None
