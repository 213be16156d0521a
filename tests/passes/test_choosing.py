"""Which layers become sparse, and how many winners they get."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsgc
from dsgc.config import LayerSettings
from dsgc.passes.balance_winners import balance_winners
from dsgc.passes.context import LayerDecision
from dsgc.passes.geometry import Geometry, conv_padding, search_cost


def settings_of(sparsity: float = 0.8, block: int = 16, scope: str = "position") -> LayerSettings:
    base = dsgc.SparsityConfig().settings_for("layer", 64)
    return replace(base, sparsity=sparsity, block=block, scope=scope)


def layer(site: str, channels: int, macs: int, sparsity: float = 0.8) -> LayerDecision:
    return LayerDecision(
        site,
        site,
        "Conv2d",
        True,
        "it pays",
        macs=macs,
        settings=settings_of(sparsity),
        geometry=Geometry(64, channels),
    )


def density(layers: list[LayerDecision], factor: float = 1.0) -> float:
    shares = balance_winners(layers, factor)
    total = sum(one.macs for one in layers)
    return sum(one.macs * shares[one.site].winners / one.blocks for one in layers) / total


def test_vgg8_meets_the_asked_sparsity() -> None:
    sizes = [(128, 144), (256, 72), (256, 144), (512, 72), (512, 144), (1024, 8)]
    layers = [layer(f"conv{i}", c, m) for i, (c, m) in enumerate(sizes)]
    assert abs(density(layers) - 0.2) <= 0.02


def test_roundings_are_balanced_between_layers() -> None:
    # Half of 2.5 blocks: plain rounding gives 3 of 5 blocks everywhere, 60 % instead of 50 %.
    layers = [layer(f"conv{i}", 80, 1, sparsity=0.5) for i in range(10)]
    winners = sorted(share.winners for share in balance_winners(layers).values())
    assert winners == [2, 2, 2, 2, 3, 3, 3, 3, 3, 3]


def test_rules_of_single_layers_are_kept() -> None:
    layers = [layer("a", 1024, 1, 0.5), layer("b", 1024, 1, 0.9)]
    shares = balance_winners(layers)
    assert shares["a"].winners == 32
    assert shares["b"].winners in (6, 7)


def test_warm_up_starts_dense() -> None:
    shares = balance_winners([layer("a", 128, 1), layer("b", 64, 1)], 0.0)
    assert [share.winners for share in shares.values()] == [8, 4]
    assert [share.density for share in shares.values()] == [1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 40), st.integers(1, 1000)), min_size=1, max_size=12),
    st.floats(0.05, 0.95),
)
def test_winners_are_whole_possible_and_near(sizes: list[tuple[int, int]], asked: float) -> None:
    layers = [layer(f"l{i}", b * 16, macs, asked) for i, (b, macs) in enumerate(sizes)]
    shares = balance_winners(layers)
    for one in layers:
        winners = shares[one.site].winners
        assert 1 <= winners <= one.blocks
        assert winners == 1 or abs(winners - (1 - asked) * one.blocks) < 1
    plain = sum(
        one.macs * (max(1, int((1 - asked) * one.blocks + 0.5)) / one.blocks - (1 - asked))
        for one in layers
    )
    total = sum(one.macs for one in layers)
    balanced = (density(layers) - (1 - asked)) * total
    assert abs(balanced) <= max(abs(plain), 0.02 * total) + 1e-6 * total


def test_search_cost_is_the_papers() -> None:
    geometry = Geometry(128, 256, (3, 3), (1, 1), (1, 1))
    drawn = replace(settings_of(), selector="drs")
    _, pixel = search_cost(drawn, geometry, 256, 256)
    _, leading = search_cost(settings_of(), geometry, 256, 256)
    assert leading == 16 / 128
    window = replace(settings_of(block=1), selector="drs", projection="window")
    _, published = search_cost(window, geometry, 256, 256)
    assert pixel == 32 / 128
    assert published == 266 / 1152  # k = 266 at eps 0.5 and 256 filters
    assert search_cost(replace(settings_of(), selector="random"), geometry, 1, 1) == (0, 0.0)


@pytest.mark.parametrize(
    ("kernel", "dilation", "padding", "expected"),
    [(3, 1, "same", (1, 1)), (3, 2, "same", (2, 2)), (2, 1, "same", None), (5, 1, "valid", (0, 0))],
)
def test_padding_by_name(
    kernel: int, dilation: int, padding: str, expected: tuple[int, int] | None
) -> None:
    assert conv_padding(nn.Conv2d(1, 1, kernel, padding=padding, dilation=dilation)) == expected


X = torch.randn(16, 64, 8, 8)


def reason(module: nn.Module, x: Tensor = X, name: str = "0") -> str:
    model = nn.Sequential(module, nn.Conv2d(64, 64, 3, padding=1), nn.Conv2d(64, 4, 1))
    config = dsgc.SparsityConfig(rules={"1": 0.8})
    sparse = dsgc.compile(model, config=config, example_inputs=x, backend="reference")
    return sparse.decisions[name].reason


def test_obstacles_are_named() -> None:
    assert "2 groups" in reason(nn.Conv2d(64, 64, 3, groups=2))
    assert "reflect" in reason(nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"))
    assert "uneven" in reason(nn.Conv2d(64, 64, 2, padding="same"))
    assert "does not pay" in reason(nn.Conv2d(64, 64, 1))
    assert "ConvTranspose2d is not supported" in reason(nn.ConvTranspose2d(64, 64, 2))
    hooked = nn.Conv2d(64, 64, 3)
    hooked.register_forward_hook(lambda *_: None)
    assert "hooks" in reason(hooked)
    computed = nn.utils.parametrizations.weight_norm(nn.Conv2d(64, 64, 3))
    assert "parametrization" in reason(computed)


class Residual(nn.Module):
    """relu(x + norm(conv(relu(norm(conv(x)))))), behind a stem and before a head."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        how = {"kernel_size": kernel, "padding": kernel // 2, "bias": False}
        self.stem = nn.Conv2d(3, channels, 1)
        self.body = nn.Sequential(
            *(nn.Conv2d(channels, channels, **how), nn.BatchNorm2d(channels), nn.ReLU()),  # type: ignore[arg-type]
            *(nn.Conv2d(channels, channels, **how), nn.BatchNorm2d(channels)),  # type: ignore[arg-type]
        )
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return cast(Tensor, self.head(torch.relu(x + self.body(x)).mean((2, 3))))


# What two sparse layers took of two dense ones, measured: channels, map, batch, sparsity, kernel.
FASTER = [
    (64, 32, 8, 0.8, 3), (64, 56, 16, 0.5, 3), (64, 56, 16, 0.8, 3), (128, 16, 16, 0.8, 3),
    (256, 8, 16, 0.8, 3), (256, 14, 16, 0.5, 3), (512, 7, 16, 0.5, 3), (512, 4, 32, 0.5, 3),
    (256, 16, 32, 0.8, 1), (512, 4, 4, 0.5, 3),
]  # fmt: skip
SLOWER = [
    (32, 32, 32, 0.5, 3), (32, 16, 16, 0.8, 3), (64, 32, 8, 0.3, 3), (64, 32, 32, 0.3, 3),
    (128, 28, 8, 0.3, 3), (64, 32, 32, 0.5, 1),
]  # fmt: skip


@pytest.mark.parametrize("case", FASTER + SLOWER)
def test_decisions_are_those_of_measurements(case: tuple[int, int, int, float, int]) -> None:
    """Where both were faster, the second, which reads packed values, is sparse; where they were
    slower, the first, which reads a dense map, is not."""
    channels, size, batch, sparsity, kernel = case
    found = dsgc.explain(
        Residual(channels, kernel),
        sparsity=sparsity,
        example_inputs=torch.zeros(batch, 3, size, size),
    )
    plans = {layer.name: layer for layer in found.layers}
    first, second = plans["body.0"], plans["body.3"]
    assert second.sparse if case in FASTER else not first.sparse, (first.reason, second.reason)


def test_a_layer_pays_together_with_the_one_that_reads_it() -> None:
    """Alone the first convolution costs too much and the second, behind a dense one, does too."""
    model, x = Residual(64, 3), torch.zeros(16, 3, 56, 56)
    found = {layer.name: layer for layer in dsgc.explain(model, 0.5, example_inputs=x).layers}
    assert found["body.0"].reason == "it pays together with 'body.3', which reads it"
    assert (found["body.3"].sparse, found["body.3"].reason) == (True, "it pays")
    config = dsgc.SparsityConfig(sparsity=0.5, rules={"body.3": None})
    alone = dsgc.explain(model, config=config, example_inputs=x)
    assert not any(layer.sparse for layer in alone.layers)


def test_a_rule_overrides_the_cost_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 1))
    config = dsgc.SparsityConfig(rules={"re:[012]": 0.5}, block=8)
    sparse = dsgc.compile(model, config=config, example_inputs=torch.randn(2, 3, 6, 6))
    assert all(d.sparse and "rule" in d.reason for d in sparse.decisions.values())


def test_a_rule_keeps_a_layer_dense() -> None:
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1))
    config = dsgc.SparsityConfig(rules={"0": None, "1": 0.8})
    sparse = dsgc.compile(model, config=config, example_inputs=X)
    assert "keeps it dense" in sparse.decisions["0"].reason
    assert sparse.decisions["1"].sparse


def test_lines_of_the_user_are_known() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x))  # type: ignore[no-any-return]

    sparse = dsgc.compile(Model(), example_inputs=X, backend="reference")
    assert sparse.decisions["a"].where.startswith(f"{__file__}:")


class ConvolutionsThenLinear(nn.Module):
    """Two convolutions on maps of 32 x 32, and a hidden linear layer of `hidden` neurons.

    With a branch on a value the model is not one graph but four.
    """

    def __init__(self, hidden: int, branch: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.first = nn.Conv2d(128, 128, 3, padding=1)
        self.second = nn.Conv2d(128, 128, 3, padding=1)
        self.hidden = nn.Linear(128, hidden)
        self.last = nn.Linear(hidden, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.branch and x.sum() > 1e9:
            x = -x
        maps = torch.relu(self.second(torch.relu(self.first(x))))
        return cast(Tensor, self.last(torch.relu(self.hidden(maps.mean((2, 3))))))


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize(("hidden", "sparse"), [(65536, False), (262144, True)])
def test_a_linear_layer_behind_convolutions_stays_dense_if_it_does_little(
    hidden: int, sparse: bool, branch: bool
) -> None:
    model = dsgc.compile(ConvolutionsThenLinear(hidden, branch), sparsity=0.8)
    with torch.no_grad():
        model._engine.prepare((torch.randn(64, 128, 32, 32),), {})
    decision = model.decisions["hidden"]
    assert model.decisions["second"].sparse
    assert decision.sparse is sparse
    assert ("of the model's work" in decision.reason) is not sparse


def test_a_rule_makes_a_small_linear_layer_sparse_all_the_same() -> None:
    rules = {"hidden": 0.5}
    config = dsgc.SparsityConfig(sparsity=0.8, rules=rules)
    model = dsgc.compile(ConvolutionsThenLinear(65536), config=config)
    model._engine.prepare((torch.randn(64, 128, 32, 32),), {})
    assert model.decisions["hidden"].sparse
