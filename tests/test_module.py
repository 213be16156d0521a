"""SparseModule: a module like any other, with the dense model's parameters."""

from __future__ import annotations

import copy
import gc
import io
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from tests.passes.agreement import assert_graphs_agree, compiled, targets

RULES: Mapping[Any, Any] = {"re:.*conv.*": 0.6}
X = torch.randn(4, 5, 8, 8, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(5, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 20, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(20)
        self.conv2 = nn.Conv2d(20, 24, 3, padding=1)
        self.fc = nn.Linear(24, 10)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.relu(self.conv2(x)).mean((2, 3))
        return self.fc(x) * self.scale  # type: ignore[no-any-return]


def sparse_net(backend: str = "reference", **settings: object) -> dsgc.SparseModule:
    settings = {"rules": RULES, "block": 8, **settings}
    config = dsgc.SparsityConfig(**settings)  # type: ignore[arg-type]
    return dsgc.compile(Net(), config=config, backend=backend)


def selector(sparse: dsgc.SparseModule, name: str) -> Any:
    return sparse.get_submodule(f"dsgc_selectors.{name}")


def test_parameters_are_the_dense_models_own() -> None:
    model = Net()
    sparse = dsgc.compile(model, config=dsgc.SparsityConfig(rules=RULES), backend="reference")
    sparse(X)
    assert [n for n, _ in sparse.named_parameters()] == [n for n, _ in model.named_parameters()]
    for name, parameter in model.named_parameters():
        assert sparse.get_parameter(name) is parameter
    assert not any(k.startswith("dsgc") for k in model.state_dict())


def test_optimizer_of_either_trains_both() -> None:
    model = Net()
    sparse = dsgc.compile(model, config=dsgc.SparsityConfig(rules=RULES), backend="reference")
    before = model.conv1.weight.detach().clone()
    for parameters in (model.parameters(), sparse.parameters()):
        optimizer = torch.optim.SGD(parameters, 0.1)
        optimizer.zero_grad()
        sparse(X).square().mean().backward()
        optimizer.step()
    assert (model.conv1.weight != before).any()
    assert model.conv1.weight is sparse.get_parameter("conv1.weight")


def test_the_model_itself_is_left_untouched() -> None:
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    sparse = dsgc.compile(model, config=dsgc.SparsityConfig(rules=RULES), backend="reference")
    sparse.train()
    sparse(X)
    sparse.eval()
    assert model.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_dense_checkpoint_loads_strictly_before_and_after_the_first_call() -> None:
    for first_call in (False, True):
        sparse, other = sparse_net(), Net()
        if first_call:
            sparse(X)
        result = sparse.load_state_dict(other.state_dict())
        assert result.missing_keys == []
        assert result.unexpected_keys == []
        torch.testing.assert_close(sparse.get_parameter("conv1.weight"), other.conv1.weight)


@pytest.mark.parametrize("search", ["svd", "drs"])
def test_sparse_checkpoint_restores_projections_and_step(search: str) -> None:
    first = sparse_net(seed=1, selector=search)
    first.train()
    first(X)
    state = {name: value.clone() for name, value in first.state_dict().items()}
    # The leading directions of a weight follow from the weight; random ones have to be kept.
    assert ("dsgc_selectors.conv1.projection" in state) == (search == "drs")
    first.eval()
    expected = first(X)
    for called in (False, True):
        other = sparse_net(seed=2, selector=search)
        if called:
            other(X)
        other.load_state_dict(state)
        other.eval()
        torch.testing.assert_close(other(X), expected)
        assert int(other.state_dict()["dsgc_selectors.step"]) == 1


def test_state_dict_has_the_dense_names() -> None:
    sparse = sparse_net()
    sparse(X)
    names = [k for k in sparse.state_dict() if not k.startswith("dsgc_selectors.")]
    assert names == list(Net().state_dict())


@pytest.mark.parametrize("called", [False, True])
def test_deepcopy_is_independent(called: bool) -> None:
    sparse = sparse_net()
    if called:
        sparse(X)
    other = copy.deepcopy(sparse).eval()
    sparse.eval()
    torch.testing.assert_close(other(X), sparse(X))
    with torch.no_grad():
        other.get_parameter("fc.weight").zero_()
        other.get_parameter("fc.bias").zero_()
        other.get_parameter("conv1.weight").normal_()
    assert other(X).abs().sum() == 0
    assert sparse(X).abs().sum() > 0


@pytest.mark.parametrize("called", [False, True])
def test_saves_and_loads_as_a_whole(called: bool) -> None:
    sparse = sparse_net()
    if called:
        sparse(X)
    file = io.BytesIO()
    torch.save(sparse, file)
    file.seek(0)
    other = torch.load(file, weights_only=False)
    torch.testing.assert_close(other.eval()(X), sparse.eval()(X))
    assert other.get_parameter("scale") is dict(other.named_parameters())["scale"]


def test_to_dense_gives_the_original_class_back() -> None:
    sparse = sparse_net()
    sparse(X)
    dense: Any = sparse.to_dense()
    assert type(dense) is Net
    assert list(dense.state_dict()) == list(Net().state_dict())
    assert dense.conv1.weight is sparse.get_parameter("conv1.weight")
    assert dense.norm1.running_mean is not sparse.get_buffer("norm1.running_mean")
    torch.testing.assert_close(dense.norm1.running_mean, sparse.get_buffer("norm1.running_mean"))


def test_train_and_eval_reach_every_module() -> None:
    sparse = sparse_net()
    sparse(X)
    sparse.eval()
    before = sparse.get_buffer("norm1.running_mean").clone()
    torch.testing.assert_close(sparse(X), sparse(X))
    torch.testing.assert_close(sparse.get_buffer("norm1.running_mean"), before)
    sparse.train()
    sparse(X)
    assert (sparse.get_buffer("norm1.running_mean") != before).any()
    assert not sparse.to_dense().eval().training


def test_frozen_norm_keeps_its_own_mode() -> None:
    sparse = sparse_net().train()
    sparse.get_submodule("norm1").eval()
    before = sparse.get_buffer("norm1.running_mean").clone()
    sparse(X)
    torch.testing.assert_close(sparse.get_buffer("norm1.running_mean"), before)
    with sparse.hold_selection():
        torch.testing.assert_close(sparse.lowered_graph(X), sparse.semantic_graph(X))


def test_selections_show_what_every_layer_computes() -> None:
    sparse = sparse_net().train()
    sparse(X)
    step, mean = int(sparse._bank.step), sparse.get_buffer("norm1.running_mean").clone()
    found = sparse.selections(X)
    assert list(found) == [name for name, made in sparse.decisions.items() if made.sparse]
    for name, mask in found.items():
        chosen = selector(sparse, name)
        assert mask.shape[:2] == (len(X), chosen.blocks)
        assert (mask.sum(1) == chosen.winners).all()
    assert sparse.training
    assert int(sparse._bank.step) == step
    assert torch.equal(sparse.get_buffer("norm1.running_mean"), mean)
    sparse.eval()
    sparse.selections(X)
    assert not sparse.training
    assert selector(sparse, "conv1").held is None


def test_selections_before_the_first_call() -> None:
    assert sparse_net().selections(X).keys() == {"conv1", "conv2"}


@pytest.mark.parametrize("called", [False, True])
def test_selections_leave_every_module_its_own_mode(called: bool) -> None:
    sparse = sparse_net().train()
    sparse.get_submodule("norm1").eval()
    if called:
        sparse(X)
    sparse.selections(X)
    evaluating = [name for name, module in sparse.named_modules() if not module.training]
    assert evaluating == ["norm1"]
    sparse.eval()
    sparse.get_submodule("norm1").train()
    sparse.selections(X)
    training = [name for name, module in sparse.named_modules() if module.training]
    assert training == ["norm1"]


def test_all_winners_is_the_dense_model() -> None:
    """With a warm-up the first step keeps everything: results are those of the dense model."""
    sparse = sparse_net(schedule="linear", warmup_steps=4, bn_stats="all")
    dense = sparse.to_dense().train()
    sparse.train()
    torch.testing.assert_close(sparse(X), dense(X))
    winners = [selector(sparse, "conv1").winners]
    for _ in range(5):
        sparse(X)
        winners.append(selector(sparse, "conv1").winners)
    assert winners[0] == 3
    assert winners[-1] == 1
    assert winners == sorted(winners, reverse=True)


def test_step_refreshes_projected_weights_now_and_then() -> None:
    sparse = sparse_net(refresh=3).train()
    sparse(X)
    sparse.get_buffer("dsgc_selectors.step").fill_(300)  # as often as ever from here on
    seen = []
    for _ in range(7):
        with torch.no_grad():
            sparse.get_parameter("conv1.weight").add_(1.0)
        sparse(X)
        seen.append(selector(sparse, "conv1").projected.clone())
    changed = [bool((a != b).any()) for a, b in pairwise(seen)]
    assert changed == [False, False, True, False, False, True]


def test_eval_projects_the_current_weights() -> None:
    sparse = sparse_net().train()
    sparse(X)
    before = selector(sparse, "conv1").projected.clone()
    with torch.no_grad():
        sparse.get_parameter("conv1.weight").add_(1.0)
    sparse.eval()
    assert (selector(sparse, "conv1").projected != before).any()


def left_out(sparse: dsgc.SparseModule) -> float:
    """The part of the blocks of conv1 that the next evaluation leaves out; 0 where all is dense."""
    mask = sparse.selections(X).get("conv1")
    return 0.0 if mask is None else 1.0 - float(mask.float().mean())


def test_growing_sparsity_runs_the_dense_model_until_it_pays() -> None:
    sparse = sparse_net(schedule="linear", warmup_steps=10, sparsity=0.8).train()
    sparse(X)
    found = []
    for _ in range(12):
        dense = copy.deepcopy(sparse.to_dense()).train()
        is_dense = torch.equal(sparse(X), dense(X))
        found.append(is_dense)
        assert is_dense == (left_out(sparse) == 0.0)
    # 40 % are reached half way, and the rule's 60 % leave out a block or two of three.
    assert found == [True] * 4 + [False] * 8
    assert left_out(sparse) == pytest.approx(2 / 3)


def test_weights_are_projected_when_sparsity_sets_in() -> None:
    sparse = sparse_net(schedule="linear", warmup_steps=10, sparsity=0.8, refresh=1000).train()
    for _ in range(5):
        sparse(X)
        with torch.no_grad():
            sparse.get_parameter("conv1.weight").add_(1.0)
    before = selector(sparse, "conv1").projected.clone()
    sparse(X)
    assert not torch.equal(before, selector(sparse, "conv1").projected)


def test_running_a_graph_changes_no_state_of_selectors() -> None:
    sparse = sparse_net(selector="random", block=8).train()
    sparse(X)
    step = int(sparse.state_dict()["dsgc_selectors.step"])
    first = [n.clone() for n in (sparse.semantic_graph(X), sparse.lowered_graph(X))]
    torch.testing.assert_close(*first)
    assert int(sparse.state_dict()["dsgc_selectors.step"]) == step
    sparse(X)
    assert (sparse.semantic_graph(X) - first[0]).abs().max() > 1e-4


def test_graphs_before_the_first_call() -> None:
    sparse = sparse_net()
    for name in ("semantic_graph", "lowered_graph", "decisions"):
        with pytest.raises(dsgc.ShapesUnknownError, match="example_inputs"):
            getattr(sparse, name)


def test_example_inputs_build_at_once() -> None:
    config = dsgc.SparsityConfig(rules=RULES)
    sparse = dsgc.compile(Net(), config=config, example_inputs=X, backend="reference")
    assert sparse.decisions["conv1"].sparse
    assert "masked_conv2d" in targets(sparse.semantic_graph)
    assert int(sparse.state_dict()["dsgc_selectors.step"]) == 0


def test_same_seed_same_selection() -> None:
    torch.manual_seed(1)
    first = sparse_net(seed=3).eval()
    torch.manual_seed(1)
    second = sparse_net(seed=3).eval()
    torch.testing.assert_close(first(X), second(X), rtol=0, atol=0)


def test_decisions_say_why() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, groups=2),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 8, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8 * 64, 10),
    )
    sparse = dsgc.compile(model, 0.9, example_inputs=torch.randn(64, 3, 8, 8))
    reasons = {name: d.reason for name, d in sparse.decisions.items()}
    assert [d.name for d in sparse.decisions.values() if d.sparse] == ["2"]
    assert "3 channels" in reasons["0"]
    assert "2 groups" in reasons["1"]
    assert "fewer than 2 blocks" in reasons["3"]
    assert "final classifier" in reasons["5"]
    assert sparse.decisions["2"].macs == 128 * 128 * 9 * 64


class Branches(Net):
    """Its own forward depends on data, that of its children does not."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
            for _ in range(2)
        )
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if x.sum() > 0:
            x = F.relu(x)
        return self.fc(self.conv2(self.conv1(x)).mean((2, 3)))  # type: ignore[no-any-return]


def test_model_that_cannot_be_traced_gets_sparse_children() -> None:
    torch.manual_seed(2)
    model = Branches()
    config = dsgc.SparsityConfig(rules={"blocks.0.0": 0.5, "conv1": 0.5}, block=8)
    sparse = dsgc.compile(model, config=config, backend="reference")
    sparse.train()
    loss = sparse(X).square().mean()
    loss.backward()
    assert [d.name for d in sparse.decisions.values() if d.sparse] == ["blocks.0.0", "conv1"]
    assert "if x.sum() > 0" in sparse.untraced[""]
    assert all(p.grad is not None for n, p in sparse.named_parameters() if "blocks.0" in n)
    with pytest.raises(dsgc.TraceError, match="no single graph"):
        _ = sparse.semantic_graph
    assert "final classifier" in sparse.decisions["fc"].reason
    # What the forward sets is kept, on the copy.
    before: Any = sparse.to_dense()
    sparse(X)
    after: Any = sparse.to_dense()
    assert (model.calls, after.calls) == (0, before.calls + 1)
    copied = copy.deepcopy(sparse).eval()
    torch.testing.assert_close(copied(X), sparse.eval()(X))


def test_untraceable_submodule_stays_dense() -> None:
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(20, 20, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) if x.sum() > 0 else x

    net = Net()
    net.norm1 = Middle()  # type: ignore[assignment]
    sparse = compiled(net.double(), X.double(), rules=RULES, block=8)
    assert __file__ in sparse.untraced["norm1"]
    assert "inside 'norm1'" in sparse.decisions["norm1.inner"].reason
    assert_graphs_agree(sparse, X.double())


def test_wrapped_models_are_unwrapped() -> None:
    config = dsgc.SparsityConfig(rules=RULES, block=8)
    sparse = dsgc.compile(nn.DataParallel(Net()), config=config, backend="reference")
    assert "conv1.weight" in dict(sparse.named_parameters())
    again = dsgc.compile(sparse, config=config, backend="reference")
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in sparse.named_parameters()]


def test_distributed_wrapper_is_unwrapped(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(Net())
        config = dsgc.SparsityConfig(rules=RULES, block=8)
        sparse = dsgc.compile(model, config=config, backend="reference")
        assert "conv1.weight" in dict(sparse.named_parameters())
        sparse(X)
        wrapped = nn.parallel.DistributedDataParallel(sparse)
        wrapped(X).sum().backward()
        # Gloo's threads let go of tensors when they are done; a group that is destroyed before
        # waits for them with Python's lock in its hands, and they wait for the lock.
        torch.distributed.barrier()
        del wrapped, model
        gc.collect()
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def _kept(graph: nn.Module, x: Tensor) -> list[Tensor]:
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        graph(x).sum()
    return kept


def test_no_dense_activation_of_a_sparse_layer_is_kept() -> None:
    sparse = sparse_net().train()
    sparse(X)
    dense_maps = {(4, 20, 8, 8), (4, 20, 4, 4), (4, 24, 4, 4)}
    semantic = [tuple(t.shape) for t in _kept(sparse.semantic_graph, X)]
    lowered = [tuple(t.shape) for t in _kept(sparse.lowered_graph, X)]
    assert dense_maps & set(semantic)
    assert not dense_maps & set(lowered)
    # One map of the dense first layer is kept: its norm and ReLU are applied when it is read.
    maps = {t.data_ptr() for t in _kept(sparse.lowered_graph, X) if t.shape == (4, 16, 8, 8)}
    assert len(maps) == 1


def test_graphs_can_be_dumped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSGC_DUMP", str(tmp_path))
    sparse_net()(X)
    names = sorted(path.stem.partition("_")[2] for path in tmp_path.iterdir())
    assert "insert_selection" in names


def test_warnings_are_not_part_of_normal_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse_net()(X).sum().backward()
