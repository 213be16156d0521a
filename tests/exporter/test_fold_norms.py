"""Batch norms go into the layers before them wherever that is exact, and nowhere else."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch import Tensor, fx, nn

import dsgc
from dsgc.programs.fold_norms import fold_norms
from dsgc.select import PackedSelection
from tests.exporter.networks import IMAGE, Small, make_sparse
from tests.exporter.test_artifact import assert_agrees

Way = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Three convolutions, the last two sparse, and `way` with what the second one makes."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.second = nn.Conv2d(32, 48, 3, padding=1)
        self.norm = nn.BatchNorm2d(48)
        self.other = nn.BatchNorm2d(48)
        self.third = nn.Conv2d(48, 48, 1, bias=False)
        self.last = nn.Conv2d(48, 7, 1)
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        y = self.way(self, self.second(torch.relu(self.first(x))))
        return cast(Tensor, self.last(torch.relu(self.third(y))))


# What stands behind a layer, and the norms that must stay.
WAYS: dict[str, tuple[Way, set[str]]] = {
    "a norm": (lambda net, y: net.norm(y), set()),
    "norm, ReLU": (lambda net, y: torch.relu(net.norm(y)), set()),
    "norm, pooling": (lambda net, y: F.max_pool2d(net.norm(y), 2), set()),
    "norm, ReLU, pooling": (lambda net, y: F.max_pool2d(torch.relu(net.norm(y)), 2), set()),
    "two norms in a row": (lambda net, y: net.other(net.norm(y)), set()),
    "a norm that is read twice": (lambda net, y: (z := net.norm(y)) + torch.relu(z), set()),
    "ReLU, norm": (lambda net, y: net.norm(torch.relu(y)), {"norm"}),
    "a value that is read beside the norm": (lambda net, y: net.norm(y) + y, {"norm"}),
    "two norms of one value": (lambda net, y: net.norm(y) + net.other(y), {"norm", "other"}),
    "norm, ReLU, norm": (lambda net, y: net.other(torch.relu(net.norm(y))), {"other"}),
}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Norms as training leaves them, some channels negative and some off."""
    torch.manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, -1.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
            norm.running_mean = torch.rand(norm.num_features) - 0.5
            norm.running_var = 0.1 + torch.rand(norm.num_features)
            with torch.no_grad():
                norm.weight[::5] = 0


def lowered(sparse: dsgc.SparseModule, x: Tensor) -> fx.GraphModule:
    with torch.no_grad():
        sparse(x)
    return sparse.lowered_graph


def before_a_sparse_layer(*modules: nn.Module, channels: int) -> dsgc.SparseModule:
    """A network that begins with these modules, which stay dense, and ends with a sparse layer."""
    model = nn.Sequential(*modules, nn.Conv2d(channels, 32, 1))
    rules = {str(len(modules)): 0.5, "re:.*": None}
    return dsgc.compile(model, config=dsgc.SparsityConfig(sparsity=0.5, rules=rules)).eval()


def norms_in(graph: fx.GraphModule) -> set[str]:
    """The norms that a graph still applies, by the names in the model."""
    called = {n.name: graph.get_submodule(str(n.target)) for n in graph.graph.nodes
              if n.op == "call_module"}  # fmt: skip
    kept = (name for name, module in called.items() if "BatchNorm" in type(module).__name__)
    return {name.removesuffix("_norm") for name in kept}


def assert_same_results(sparse: dsgc.SparseModule, x: Tensor) -> fx.GraphModule:
    """Folding changes no result, selections being equal; the folded graph."""
    with torch.no_grad(), sparse.hold_selection():
        before = lowered(sparse, x)
        after = fold_norms(before)
        wanted, found = before(x), after(x)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    return after


def constants(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        return load(archive.read("weights.safetensors"))


def kernels(path: Path) -> list[str]:
    """The kernels that a program calls, in order."""
    with zipfile.ZipFile(path) as archive:
        program = json.loads(archive.read("manifest.json"))["program"]
    return [step["kernel"] for step in program if "kernel" in step]


def affine_constants(path: Path) -> list[str]:
    return [name for name in constants(path) if re.search(r"\.(scale|shift)(\.\d+)?$", name)]


def test_a_network_of_norms_has_none_left(tmp_path: Path) -> None:
    model = Small()
    randomise(model)
    sparse = make_sparse(model)
    x = torch.randn(4, *IMAGE)
    path = dsgc.export(sparse, tmp_path / "model.dsgc", x)
    with zipfile.ZipFile(path) as archive:
        graph = archive.read("graph.txt").decode()
    assert "affine" not in graph
    assert "dsgc_norm" not in graph
    assert affine_constants(path) == []
    assert_agrees(sparse, path, x)


@pytest.mark.parametrize("dense", [False, True], ids=["sparse", "dense"])
@pytest.mark.parametrize("name", WAYS)
def test_what_cannot_be_folded_stays(name: str, dense: bool, tmp_path: Path) -> None:
    way, left = WAYS[name]
    model = Net(way)
    randomise(model)
    sparse = make_sparse(model)
    if dense:
        config = dsgc.SparsityConfig(sparsity=0.75, rules={"third": 0.75, "re:.*": None})
        sparse = dsgc.compile(model, config=config).eval()
    x = torch.randn(4, *IMAGE)
    assert norms_in(assert_same_results(sparse, x)) == left
    path = dsgc.export(sparse, tmp_path / "model.dsgc", x)
    assert bool(affine_constants(path)) == bool(left)
    assert_agrees(sparse, path, x)


def test_a_folded_norm_costs_no_pass(tmp_path: Path) -> None:
    modules = nn.Conv2d(3, 20, 3), nn.BatchNorm2d(20), nn.Conv2d(20, 30, 3)
    randomise(modules[1])
    sparse = before_a_sparse_layer(*modules, channels=30)
    path = dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, *IMAGE))
    assert "finish_rows" not in kernels(path)


class Rows(nn.Module):
    """Linear layers with norms of rows; the first stays dense."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU()),
            *(nn.Linear(64, 96, bias=False), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.layers(x))


@pytest.mark.parametrize("block", [1, 16])
def test_linear_layers_fold_their_norms(block: int, tmp_path: Path) -> None:
    model = Rows()
    randomise(model)
    sparse = make_sparse(model, block=block)
    x = torch.randn(6, 20)
    assert norms_in(assert_same_results(sparse, x)) == set()
    path = dsgc.export(sparse, tmp_path / "model.dsgc", x)
    assert affine_constants(path) == []
    assert_agrees(sparse, path, x)


def test_search_and_module_stay_as_they_are() -> None:
    model = Net(WAYS["norm, ReLU"][0])
    randomise(model)
    sparse = make_sparse(model, ranking="normalized")
    graph = lowered(sparse, torch.randn(2, *IMAGE))
    text = str(graph.graph)
    state = {name: tensor.clone() for name, tensor in sparse.state_dict().items()}
    searches = [m.selector for m in graph.modules() if isinstance(m, PackedSelection)]
    found = [[*selector.search()[:4]] for selector in searches]
    folded = fold_norms(graph)
    assert [m.selector for m in folded.modules() if isinstance(m, PackedSelection)] == searches
    (ranked_after,) = (selector.norm for selector in searches if selector.norm is not None)
    assert ranked_after.weight is model.norm.weight
    for selector, before in zip(searches, found, strict=True):
        for one, other in zip(selector.search()[:4], before, strict=True):
            assert one is other or torch.equal(one, other)
    assert str(graph.graph) == text
    assert all(torch.equal(state[name], t) for name, t in sparse.state_dict().items())


@pytest.mark.parametrize("kind", ["no statistics", "overflow", "hook", "padding"])
def test_odd_norms_and_layers_are_left_alone(kind: str) -> None:
    conv = nn.Conv2d(
        *(16, 16, 3),
        padding=1,
        padding_mode="reflect" if kind == "padding" else "zeros",
    )
    norm = nn.BatchNorm2d(16, track_running_stats=kind != "no statistics")
    if kind == "overflow":
        nn.init.constant_(norm.weight, 1e38)
        norm.running_var = torch.full((16,), 1e-30)
        norm.eps = 1e-30
    if kind == "hook":
        conv.register_forward_hook(lambda module, inputs, made: made + 1)
    graph = lowered(before_a_sparse_layer(conv, norm, channels=16), torch.randn(2, 16, 8, 8))
    assert norms_in(fold_norms(graph)) == {"_1"}


@pytest.mark.parametrize("groups", [2, 16])
def test_a_norm_is_folded_into_a_convolution_in_groups(groups: int) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(16, 32, 3, padding=1, groups=groups), nn.BatchNorm2d(32)
    assert norm.running_mean is not None
    nn.init.normal_(norm.running_mean)
    x = torch.randn(2, 16, 8, 8)
    graph = lowered(before_a_sparse_layer(conv, norm, channels=32), x)
    folded = fold_norms(graph)
    assert norms_in(folded) == set()
    torch.testing.assert_close(folded(x), graph(x), rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Block:
    """A convolution and what follows it."""

    order: str
    sparse: bool
    bias: bool
    affine: bool
    gamma: float
    exponent: int
    eps: float


BLOCKS = st.builds(
    Block,
    order=st.sampled_from(["n", "nr", "rn", "nn", "nrn", "r"]),
    sparse=st.booleans(),
    bias=st.booleans(),
    affine=st.booleans(),
    gamma=st.sampled_from([-2.0, 0.0, 1e-3, 1.0]),
    exponent=st.integers(-40, 3),
    eps=st.sampled_from([1e-5, 1e-3]),
)


def built(blocks: list[Block], seed: int) -> tuple[nn.Module, dict[str, float | None]]:
    """A network of these blocks, and the rules that make it sparse."""
    generator = torch.Generator().manual_seed(seed)
    modules: list[nn.Module] = [nn.Conv2d(3, 16, 1)]
    rules: dict[str, float | None] = {}
    for block in blocks:
        rules[str(len(modules))] = 0.5 if block.sparse else None
        modules.append(nn.Conv2d(16, 16, 3, padding=1, bias=block.bias))
        for letter in block.order:
            norm = nn.BatchNorm2d(16, eps=block.eps, affine=block.affine)
            norm.running_mean = 0.3 * torch.randn(16, generator=generator)
            norm.running_var = 10.0**block.exponent * (0.5 + torch.rand(16, generator=generator))
            if block.affine:
                norm.weight.data = block.gamma * torch.randn(16, generator=generator)
                norm.bias.data = torch.randn(16, generator=generator)
            modules.append(norm if letter == "n" else nn.ReLU())
    return nn.Sequential(*modules, nn.Conv2d(16, 4, 1)), {**rules, "re:.*": None}


@given(st.lists(BLOCKS, min_size=1, max_size=3), st.integers(0, 1000), st.sampled_from([1, 8]))
@settings(max_examples=40)
def test_folding_changes_no_result(blocks: list[Block], seed: int, block: int) -> None:
    torch.manual_seed(seed)
    model, rules = built([*blocks, Block("r", True, True, True, 1.0, 0, 1e-5)], seed)
    config = dsgc.SparsityConfig(sparsity=0.5, rules=rules, block=block)
    sparse = dsgc.compile(model, config=config, backend="reference").eval()
    graph = assert_same_results(sparse, torch.randn(2, 3, 6, 6))
    # A norm stays where a ReLU stands before it, and nowhere else.
    kept = sum(one.order.count("rn") for one in blocks)
    assert len(norms_in(graph)) == kept


@given(st.data())
@settings(max_examples=20)
def test_folded_parameters_are_rounded_once(data: st.DataObject) -> None:
    """Against the same layer and norm in float64."""
    seed, exponent = data.draw(st.integers(0, 99)), data.draw(st.integers(-12, 4))
    torch.manual_seed(seed)
    conv, norm = nn.Conv2d(3, 8, 3, bias=data.draw(st.booleans())), nn.BatchNorm2d(8)
    norm.eps = 10.0**exponent
    randomise(norm, seed)
    graph = lowered(before_a_sparse_layer(conv, norm, channels=8), torch.randn(2, *IMAGE))
    folded: Any = fold_norms(graph).get_submodule("dsgc_folded._0")
    mean, variance = (cast(Tensor, t).double() for t in (norm.running_mean, norm.running_var))
    scale = norm.weight.double() / (variance + norm.eps).sqrt()
    bias = 0 if conv.bias is None else conv.bias.double()
    wanted = {
        "weight": conv.weight.double() * scale.view(-1, 1, 1, 1),
        "bias": (bias - mean) * scale + norm.bias.double(),
    }
    for name, exact in wanted.items():
        off = (getattr(folded, name).double() - exact).abs()
        assert (off <= 2**-24 * exact.abs() + 1e-14).all(), name
