"""Reordering channels: the function stays, blocks fire together, nothing is reordered by halves."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dsgc
from dsgc import zoo
from dsgc.grouping.cluster import block_sizes, cluster, kept_share


def lively(model: nn.Module) -> nn.Module:
    """Batch norms as after training, in eval mode: every channel another mean and gain."""
    random = torch.Generator().manual_seed(1)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(0.0, 0.1, generator=random)
            norm.running_var.uniform_(0.5, 1.5, generator=random)
            with torch.no_grad():
                norm.weight.uniform_(0.5, 1.5, generator=random)
                norm.bias.normal_(0.0, 0.3, generator=random)
    return model.eval()


def images(batch: int, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("network", "options"),
    [
        ("vgg8", {"width": 0.5, "image_size": 16}),
        ("dsg_resnet8", {"width": 0.5, "image_size": 16}),
        ("resnet20", {"width": 2.0}),
        ("wrn16_4", {"width": 0.5}),
        ("resnet50", {"width": 0.25}),
    ],
)
def test_the_function_stays_and_blocks_hold_more(network: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = lively(zoo.build(network, in_channels=3, classes=10, **options))
    size = 64 if network == "resnet50" else 16
    x = images(8, size=size)
    before, state = model(x), copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    grouping = dsgc.group_neurons(model, 0.8, example_inputs=x)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    reordered = [layer for layer in grouping.layers if not layer.fixed]
    assert len(reordered) >= len(grouping.layers) / 2
    gain = [layer.after - layer.before for layer in reordered]
    assert sum(gain) / len(gain) > 0.1
    after = model.state_dict()
    assert {name: value.shape for name, value in after.items()} == {
        name: value.shape for name, value in state.items()
    }
    assert any(not torch.equal(after[name], state[name]) for name in state)
    assert all(parameters[name] is value for name, value in model.named_parameters())


def test_planted_groups_are_found_and_selection_then_loses_nothing() -> None:
    # 8 patterns, each fired by 16 neurons that are scattered; a position shows one pattern.
    torch.manual_seed(0)
    order = torch.randperm(128)
    first = nn.Linear(8, 128, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.eye(8).repeat_interleave(16, 0)[order] * torch.rand(128, 1))
    model = nn.Sequential(first, nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    x = torch.eye(8).repeat(16, 1)
    config = dsgc.SparsityConfig(
        sparsity=0.875, block=16, selector="oracle", rules={"0": 0.875, "2": None}
    )
    dense = model(x)
    scattered = dsgc.compile(model, config=config, backend="reference").eval()(x)
    growing = replace(config, schedule="cubic", warmup_steps=10)  # what counts is its end
    grouping = dsgc.group_neurons(model, config=growing, example_inputs=x)
    (layer,) = grouping.layers
    assert layer.winners == 1
    assert layer.blocks == 8
    assert layer.before < 0.5
    assert layer.after == pytest.approx(1.0)
    together = dsgc.compile(model, config=config, backend="reference").eval()(x)
    torch.testing.assert_close(together, dense)
    assert not torch.allclose(scattered, dense, atol=1e-3)


def why_fixed(model: nn.Module, x: Tensor, *layers: str) -> dict[str, str]:
    """Groups a model, which must compute what it did; by layer, why its channels had to stay."""
    config = dsgc.SparsityConfig(sparsity=0.8, rules=dict.fromkeys(layers, 0.8))
    before = model(x)
    grouping = dsgc.group_neurons(model, config=config, example_inputs=x)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    fixed = {layer.name: layer.fixed for layer in grouping.layers}
    assert ("no: " in str(grouping)) == any(fixed.values())
    return fixed


class Tangled(nn.Module):
    """Depthwise and shared convolutions, a gate a channel, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 64, 3, padding=1)
        self.deep = nn.Conv2d(64, 64, 3, padding=1, groups=64)
        self.again = nn.Conv2d(64, 64, 3, padding=1)
        self.squeeze = nn.Linear(64, 32)
        self.excite = nn.Linear(32, 64)
        self.out = nn.Linear(64 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.deep(self.first(x)))
        x = F.relu(self.again(F.relu(self.again(x)) + x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = F.adaptive_avg_pool2d(x * gate.view(x.shape[0], 64, 1, 1), 2)
        out: Tensor = self.out(x.flatten(1))
        return out


def test_a_layer_called_twice_ties_what_it_reads_to_what_it_makes() -> None:
    torch.manual_seed(0)
    model, x = Tangled().eval(), images(16, 8, 8)
    first = model.first.weight.detach().clone()
    why_fixed(model, x, "again", "first")
    # The gate's view is an operation that may depend on the order: its channels stay, and with
    # them all that they are added to or multiplied by.
    assert torch.equal(model.first.weight, first)


class Reader(nn.Module):
    """A hidden layer whose channels something else reads."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a = nn.Conv2d(8, 64, 3, padding=1)
        self.b = nn.Conv2d(64, 64, 3, padding=1)
        self.c = nn.Conv2d(64, 64, 1)
        if how == "shared":
            self.other = nn.PReLU(64)
            self.other.weight = nn.Parameter(torch.rand(64))
            self.a.bias = self.other.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if self.how == "cut":
            x = x * 1.0 + torch.cat([x[:, 32:], x[:, :32]], 1)
        elif self.how == "direct" and self.a.bias is not None:
            x = x + self.a.bias.view(1, -1, 1, 1)
        elif self.how == "shared":
            x = self.other(x)
        out: Tensor = self.c(F.relu(self.b(x)))
        return out


@pytest.mark.parametrize(
    ("how", "reason"),
    [("cut", "getitem"), ("direct", "tensor of its own|view"), ("shared", "PReLU|other")],
)
def test_channels_that_something_else_reads_stay(how: str, reason: str) -> None:
    torch.manual_seed(0)
    model, x = Reader(how).eval(), images(8, 8, 8)
    weight = model.a.weight.detach().clone()
    fixed = why_fixed(model, x, "a", "b")
    assert fixed["b"] == ""
    assert re.search(reason, fixed["a"]), fixed["a"]
    assert torch.equal(model.a.weight, weight)


def test_the_optimizers_state_goes_along() -> None:
    torch.manual_seed(0)
    model = zoo.build("vgg8", in_channels=3, width=0.5, image_size=16).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = images(16).double(), torch.arange(16) % 10

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model.train()(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    step(model, optimizer)
    twin = copy.deepcopy(model)
    other = torch.optim.SGD(twin.parameters(), lr=0.01, momentum=0.9)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    dsgc.group_neurons(twin, 0.8, example_inputs=x, optimizer=other)
    assert twin.training
    for _ in range(2):
        step(model, optimizer)
        step(twin, other)
    torch.testing.assert_close(twin.eval()(x), model.eval()(x), rtol=1e-6, atol=1e-6)


class Branching(nn.Module):
    """Its own code looks at data, so its children are compiled each for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(8, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)
        )
        self.head = nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        out: Tensor = self.head(x if float(x.detach().sum()) > 0 else -x)
        return out


def test_parts_of_a_model_that_does_not_trace() -> None:
    torch.manual_seed(0)
    model, x = Branching().eval(), images(8, 8, 8)
    fixed = why_fixed(model, x, "body.0", "body.2")
    assert fixed["body.0"] == ""
    assert "output" in fixed["body.2"]


def test_modes_and_random_numbers_are_left_alone() -> None:
    model = zoo.build("vgg8", in_channels=3, width=0.5, image_size=16).train()
    norm = model.get_submodule("features.1").eval()
    modes = [module.training for module in model.modules()]
    counted = norm.state_dict()["num_batches_tracked"].clone()
    state = torch.get_rng_state()
    dsgc.group_neurons(model, 0.8, example_inputs=images(8))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(norm.state_dict()["num_batches_tracked"], counted)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_grouped_is_an_error() -> None:
    model = zoo.build("vgg8", in_channels=3, width=0.5, image_size=16).eval()
    x = images(8)
    with pytest.raises(dsgc.InputError, match="dense model"):
        dsgc.group_neurons(dsgc.compile(model, 0.8), example_inputs=x)
    with pytest.raises(dsgc.InputError, match="tensor"):
        dsgc.group_neurons(model, example_inputs=())
    with pytest.raises(dsgc.UnknownLayerError):
        dsgc.group_neurons(
            model, config=dsgc.SparsityConfig(rules={"nothing": 0.5}), example_inputs=x
        )
    with pytest.raises(dsgc.NothingToSparsifyError):
        dsgc.group_neurons(nn.Sequential(nn.Linear(4, 2)), example_inputs=torch.ones(3, 4))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(dsgc.InputError, match=r"features\.3.*not finite"):
        dsgc.group_neurons(model, example_inputs=x * float("nan"))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@given(
    channels=st.integers(1, 40),
    block=st.sampled_from((1, 8, 16)),
    positions=st.integers(0, 30),
    seed=st.integers(0, 99),
)
def test_a_clustering_is_an_order_of_all_channels(
    channels: int, block: int, positions: int, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    fired = torch.randn(positions, channels, generator=random).clamp(min=0.0)
    order = cluster(fired, block)
    assert sorted(order.tolist()) == list(range(channels))
    assert torch.equal(order, cluster(fired, block))
    assert sum(block_sizes(channels, block)) == channels
    share = kept_share(fired[:, order], block, 1)
    assert 0.0 <= share <= 1.0 + 1e-6
    assert kept_share(fired, block, len(block_sizes(channels, block))) == pytest.approx(1.0)
