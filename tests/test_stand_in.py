"""The sparse module looks like the model: what is written to it is the model's, hooks run."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc

X = torch.randn(4, 16, 8, 8, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)
        )
        self.fc = nn.Linear(32, 10)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))
        self.tau = 1.0
        self._config = "the model's own"

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.body(x)).mean((2, 3))
        if self.fc is not None:
            x = self.fc(x)
        return x * self.scale * self.tau + self.get_buffer("shift")


def sparse_net(model: nn.Module | None = None, **settings: Any) -> dsgc.SparseModule:
    torch.manual_seed(0)
    config = dsgc.SparsityConfig(
        0.5, rules={"body.0": 0.5, "body.2": 0.5}, block=8, schedule="constant", **settings
    )
    return dsgc.compile(model or Net(), config=config, backend="reference")


def called(sparse: dsgc.SparseModule, first: bool) -> dsgc.SparseModule:
    if first:
        sparse(X)
    return sparse


@pytest.mark.parametrize("first", [False, True])
def test_a_container_is_indexed_like_the_model(first: bool) -> None:
    model = nn.Sequential(*Net().body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    config = dsgc.SparsityConfig(0.5, rules={"0": 0.5, "2": 0.5}, block=8)
    sparse = called(dsgc.compile(model, config=config, backend="reference"), first)
    assert len(sparse) == len(model)
    assert [type(child) for child in sparse] == [type(child) for child in model]
    assert sparse[0].weight is model[0].weight
    assert len(sparse[:2]) == 2
    sparse[-1] = nn.Linear(32, 7)
    assert sparse.get_parameter("5.weight").shape == (7, 32)
    assert sparse(X).shape == (4, 7)
    assert [site for site, d in sparse.decisions.items() if d.sparse] == ["0", "2"]


def test_other_models_are_no_containers() -> None:
    sparse = sparse_net()
    assert sparse  # with a length it would be asked for that
    for use in (len, iter, lambda model: model[0]):
        with pytest.raises(TypeError):
            use(sparse)


@pytest.mark.parametrize("first", [False, True])
def test_a_new_head_is_used_and_trained(first: bool) -> None:
    sparse = called(sparse_net(), first)
    sparse.fc = nn.Linear(32, 7)
    assert dict(sparse.named_parameters())["fc.weight"].shape == (7, 32)
    assert list(sparse.state_dict())[-1].startswith("dsgc_selectors.")
    made = sparse(X)
    assert made.shape == (4, 7)
    made.sum().backward()
    assert sparse.fc.weight.grad is not None
    dense: Any = sparse.to_dense()
    assert dense.fc.weight is sparse.fc.weight
    assert [site for site, d in sparse.decisions.items() if d.sparse] == ["body.0", "body.2"]


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("way", ["delete", "None", "add_module", "inside", "rebuilt"])
def test_other_ways_to_change_children(first: bool, way: str) -> None:
    sparse = called(sparse_net(selector="drs"), first)
    step = int(sparse._bank.step)
    if way == "delete":
        del sparse.fc
        assert "fc" not in dict(sparse.named_modules())
        sparse.fc = None
    elif way == "None":
        sparse.fc = None
    elif way == "add_module":
        sparse.add_module("fc", nn.Linear(32, 7))
    else:
        if way == "rebuilt":
            sparse.float()  # graphs are gone
        sparse.body[2] = nn.Conv2d(32, 24, 3, padding=1)
        sparse.fc = nn.Linear(24, 7)
    sparse.eval()
    width = 32 if sparse.fc is None else 7
    assert sparse(X).shape == (4, width)
    expected = sparse.to_dense()
    with sparse.hold_selection():
        for selector in sparse._bank.selectors:
            selector.winners = selector.blocks
        torch.testing.assert_close(sparse(X), expected(X))
    assert int(sparse._bank.step) == step


def test_parameters_put_in_place_are_used() -> None:
    sparse = called(sparse_net().eval(), True)
    sparse.scale = nn.Parameter(torch.zeros(()))
    assert sparse(X).abs().max() == 0
    sparse.shift = torch.ones(())
    assert (sparse(X) == 1).all()
    sparse.scale = nn.Parameter(torch.ones(()))
    sparse.shift = torch.zeros(())
    state = {name: torch.zeros_like(t) for name, t in Net().state_dict().items()}
    sparse.load_state_dict(state, assign=True)
    assert sparse(X).abs().max() == 0
    assert [site for site, d in sparse.decisions.items() if d.sparse] == ["body.0", "body.2"]


def test_tensors_in_the_place_of_parameters_for_one_call_change_no_decision() -> None:
    """As torch.func.functional_call does it."""
    sparse = called(sparse_net(), True).eval()
    own = sparse(X).detach()
    made = sparse._engine
    other = {name: 1.5 * p.detach() for name, p in sparse.named_parameters()}
    found = torch.func.functional_call(sparse, other, (X,))
    assert sparse._engine is made
    torch.testing.assert_close(sparse(X), own)
    twin = sparse_net().eval()
    twin.load_state_dict({**sparse.state_dict(), **other})
    torch.testing.assert_close(found, twin(X))


def test_a_new_projection_is_drawn_for_a_new_layer_only() -> None:
    sparse = called(sparse_net(selector="drs", seed=1), True)
    other = called(sparse_net(selector="drs", seed=2), True)
    other.load_state_dict(sparse.state_dict())
    other.fc = nn.Linear(32, 7)
    other(X)
    name = "dsgc_selectors.body__0.projection"
    assert torch.equal(other.state_dict()[name], sparse.state_dict()[name])


def test_attributes_are_the_models() -> None:
    sparse = sparse_net()
    assert sparse.tau == 1.0
    sparse.tau = 0.5
    assert sparse.to_dense().tau == 0.5
    assert "tau" not in vars(sparse)
    sparse.note = "new"
    assert sparse.to_dense().note == "new"
    del sparse.note
    with pytest.raises(AttributeError, match="'SparseModule' object has no attribute 'note'"):
        _ = sparse.note
    assert isinstance(sparse.config, dsgc.SparsityConfig)
    assert sparse.to_dense()._config == "the model's own"


def test_copies_are_apart() -> None:
    sparse = called(sparse_net(), True)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    for other in (copy.deepcopy(sparse), torch.load(file, weights_only=False)):
        other.tau = 0.0
        other.fc = nn.Linear(32, 3)
        assert other(X).shape == (4, 3)
        assert sparse.tau == 1.0
        assert sparse(X).shape == (4, 10)


class Recorder:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def after(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        self.seen.append("after")
        return output * 0

    def before(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        self.seen.append("before")
        return (args[0] + 1,), kwargs

    def backward(self, module: nn.Module, grad_in: Any, grad_out: Any) -> None:
        self.seen.append("backward")


@pytest.mark.parametrize("warm_up", [{}, {"warmup_steps": 9, "schedule": "cubic"}])
def test_hooks_of_the_model_itself_run_once(warm_up: dict[str, Any]) -> None:
    model, recorder = Net(), Recorder()
    model.register_forward_pre_hook(recorder.before, with_kwargs=True)
    model.register_forward_hook(recorder.after)
    model.register_full_backward_hook(recorder.backward)
    sparse = dsgc.compile(
        model,
        config=dsgc.SparsityConfig(0.5, rules={"body.0": 0.5}, block=8, **warm_up),
        backend="reference",
    )
    for module in (sparse, copy.deepcopy(sparse.to_dense()), dsgc.compile(sparse, 0.5)):
        assert module._forward_hooks
    for _ in range(2):
        recorder.seen.clear()
        made = sparse(X.clone().requires_grad_())
        assert made.abs().max() == 0
        made.sum().backward()
        assert recorder.seen == ["before", "after", "backward"]
    recorder.seen.clear()
    model(X)
    assert recorder.seen == ["before", "after"]
    recorder.seen.clear()
    sparse.to_dense()(X)
    assert recorder.seen == ["before", "after"]


def test_hooks_of_a_model_that_is_not_one_graph_run_once() -> None:
    class Branch(Net):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) if x.sum() < 1e9 else x

    model, recorder = Branch(), Recorder()
    model.register_forward_hook(recorder.after)
    sparse = sparse_net(model)
    assert sparse(X).abs().max() == 0
    assert recorder.seen == ["after"]


def test_methods_of_the_model_run_it_sparse() -> None:
    class Trained(Net):
        def loss(self, x: Tensor) -> Tensor:
            return self(x).pow(2).mean()  # type: ignore[no-any-return]

        @torch.no_grad()
        def predict(self, x: Tensor) -> Tensor:
            return self(x).argmax(1)  # type: ignore[no-any-return]

        def reset(self, classes: int) -> None:
            self.fc = nn.Linear(32, classes)

        def extra_repr(self) -> str:
            return "trained"

        def described(self) -> str:
            return super().extra_repr()

    sparse: Any = sparse_net(Trained())
    sparse.loss(X).backward()
    assert int(sparse.get_buffer("dsgc_selectors.step")) == 1
    assert float(sparse.loss(X)) != float(sparse.to_dense().loss(X))
    assert sparse.predict(X).shape == (4,)
    sparse.reset(3)
    assert sparse.fc.out_features == 3
    assert sparse.state_dict()["fc.weight"].shape == (3, 32)
    assert sparse(X).shape == (4, 3)
    assert sparse.described() == ""


@pytest.mark.parametrize("first", [False, True])
def test_a_container_may_grow_and_shrink(first: bool) -> None:
    model = nn.Sequential(*Net().body)
    config = dsgc.SparsityConfig(0.5, rules={"0": 0.5}, block=8)
    sparse: Any = called(dsgc.compile(model, config=config, backend="reference"), first)
    sparse.append(nn.Conv2d(32, 4, 1))
    assert [name for name, _ in sparse.named_children()] == ["0", "1", "2", "3", "dsgc_selectors"]
    assert sparse(X).shape == (4, 4, 8, 8)
    del sparse[1]
    assert [name for name, _ in sparse.named_parameters()][::2] == [
        "0.weight",
        "1.weight",
        "2.weight",
    ]
    sparse.insert(0, nn.Conv2d(16, 16, 1))
    assert len(sparse) == 4
    assert sparse(X).shape == (4, 4, 8, 8)
    sparse.pop(0)
    sparse.extend([nn.ReLU()])
    assert bool((sparse(X) >= 0).all())
    again = copy.deepcopy(sparse)
    again.append(nn.Flatten())
    assert (len(sparse), len(again)) == (4, 5)


def test_a_container_inside_may_shrink_after_the_first_call() -> None:
    sparse: Any = called(sparse_net(), True)
    expected = sparse.body[0](X)
    del sparse.body[1:]
    torch.testing.assert_close(sparse.to_dense().body(X), expected)
    assert sparse(X).shape == (4, 10)
    assert [site for site, d in sparse.decisions.items() if d.sparse] == ["body.0"]
