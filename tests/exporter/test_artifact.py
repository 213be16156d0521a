"""Artifacts compute what the compiled module computes in eval mode."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
import dsgc_runtime
from dsgc.codegen.target import host_target
from tests.exporter.networks import IMAGE, Small, exported, make_sparse
from tests.test_models import CASES, Case, compiled, network


def assert_agrees(sparse: nn.Module, path: Path, inputs: Tensor) -> None:
    """Both at the batch of the example, at one and at an odd one.

    Folded norms round differently, and so two blocks that rank almost equal may change places. That
    is rare: a batch in which it happens is followed by one in which it must not happen.
    """
    model = dsgc_runtime.load(path, threads=1)
    for batch in (inputs.shape[0], 1, inputs.shape[0] + 3):
        shape = (batch, *inputs.shape[1:])
        assert any(difference(sparse, model, torch.randn(shape)) <= 1e-5 for _ in range(2))


def difference(sparse: nn.Module, model: dsgc_runtime.Model, x: Tensor) -> float:
    """The largest difference between module and artifact, by the largest value."""
    with torch.no_grad():
        wanted = sparse(x).numpy()
    found = model(x)
    assert isinstance(found, np.ndarray)
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_network_of_the_zoo_agrees(case: Case, tmp_path: Path) -> None:
    model, images, _ = network(case, torch.float32)
    sparse = compiled(model, "tvm").eval()
    assert_agrees(sparse, dsgc.export(sparse, tmp_path / "model.dsgc", images), images)


@pytest.mark.parametrize(
    "settings",
    [
        {"block": 1},
        {"block": 8},
        {"block": 32},
        {"selector": "drs"},
        {"ranking": "raw"},
        {"bn_stats": "all"},
    ],
    ids=str,
)
def test_settings_agree(settings: dict[str, object], tmp_path: Path) -> None:
    sparse = make_sparse(Small(), **settings)
    x = torch.randn(5, *IMAGE)
    assert_agrees(sparse, dsgc.export(sparse, tmp_path / "model.dsgc", x), x)


@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_perceptrons_of_matrices_agree(block: int, tmp_path: Path) -> None:
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 192), nn.ReLU(), nn.Linear(192, 160)]
    model = nn.Sequential(nn.Flatten(), *layers, nn.ReLU(), nn.Linear(160, 7))
    config = dsgc.SparsityConfig(sparsity=0.75, rules={"re:[135]": 0.75}, block=block)
    x = torch.randn(5, 64)
    sparse = dsgc.compile(model, config=config).eval()
    path = dsgc.export(sparse, tmp_path / "model.dsgc", x)
    assert_agrees(sparse, path, x)
    pairs = block > 1
    with zipfile.ZipFile(path) as archive:
        manifest = archive.read("manifest.json").decode()
    assert (f"packed_convolution_{block}_{block}" in manifest) == pairs


def test_an_artifact_for_an_older_processor_agrees(tmp_path: Path) -> None:
    target = "avx2" if host_target().lanes >= 8 else "x86-64"
    sparse = make_sparse(Small())
    x = torch.randn(5, *IMAGE)
    path = dsgc.export(sparse, tmp_path / "model.dsgc", x, target=target)
    assert_agrees(sparse, path, x)


class Shapes(nn.Module):
    """What networks do besides layers: padding, leaving pixels out, sums, several results."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 20, 3, stride=2)
        self.second = nn.Conv2d(20, 36, 3, padding="same", dilation=2)
        self.third = nn.Conv2d(36, 40, 1)
        self.norm = nn.BatchNorm2d(40)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        a = torch.relu(self.second(torch.relu(self.first(x))))
        wide = F.pad(a[:, :, ::1, ::1], (0, 0, 0, 0, 1, 3))
        total = wide + self.norm(torch.relu(self.third(a)))
        pooled = F.avg_pool2d(total, 3, stride=2, padding=1, count_include_pad=False)
        small = total[:, :, ::2, ::3]
        return pooled, {"maximum": F.max_pool2d(total, 2, ceil_mode=True), "small": small}


def test_several_results_come_in_the_order_of_the_model(tmp_path: Path) -> None:
    sparse = make_sparse(Shapes())
    x = torch.randn(3, 3, 11, 13)
    model = dsgc_runtime.load(dsgc.export(sparse, tmp_path / "model.dsgc", x), threads=1)
    with torch.no_grad():
        pooled, named = sparse(x)
    found = model(x.numpy())
    assert isinstance(found, tuple)
    for one, other in zip(found, (pooled, named["maximum"], named["small"]), strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-5, atol=1e-5)


def test_a_module_is_left_as_it_was(tmp_path: Path) -> None:
    sparse = make_sparse(Small())
    sparse(torch.randn(4, *IMAGE))  # decides which layers are sparse, and keeps that
    sparse.train().get_parameter("features.0.weight").requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in sparse.state_dict().items()}
    dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(4, *IMAGE))
    assert sparse.training
    after = sparse.state_dict()  # and the decisions about layers, made by now
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_equal_models_make_equal_bytes(tmp_path: Path) -> None:
    sparse, first = exported(tmp_path, "a.dsgc")
    torch.manual_seed(5)
    second = dsgc.export(sparse, tmp_path / "b.dsgc", torch.randn(4, *IMAGE))
    assert first.read_bytes() == second.read_bytes()


def test_the_artifact_says_what_it_is(tmp_path: Path) -> None:
    _, path = exported(tmp_path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read("manifest.json"))
        graph = archive.read("graph.txt").decode()
    assert names == ["manifest.json", "graph.txt", "kernels.so", "weights.safetensors"]
    layers = {layer["name"]: layer for layer in manifest["layers"]}
    assert layers["0.3"]["sparse"]
    assert layers["0.3"]["sparsity"] == pytest.approx(0.75)
    assert not layers["0.0"]["sparse"]
    assert "first convolution" in layers["0.0"]["reason"]
    assert "conv2d" in graph


def test_a_fixed_batch_is_kept(tmp_path: Path) -> None:
    sparse = make_sparse(Small())
    x = torch.randn(4, *IMAGE)
    path = dsgc.export(sparse, tmp_path / "model.dsgc", x, dynamic_batch=False)
    model = dsgc_runtime.load(path)
    with pytest.raises(dsgc_runtime.InputError, match="batches of 4, not 3"):
        model(x[:3].numpy())
    assert model.inputs[0].shape == (4, *IMAGE)
    assert model.outputs[0].shape[0] == 4


class WithCumsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small = Small()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(self.small.features(x), 1)


def test_what_cannot_be_exported_is_named_with_its_line(tmp_path: Path) -> None:
    sparse = make_sparse(WithCumsum())
    with pytest.raises(dsgc.ExportError, match=r"cumsum.*test_artifact\.py:\d+.*is a cumsum"):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, *IMAGE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["features.0", "classifier.0", "features.1", "classifier.2", ""])
def test_hooks_are_not_lost(name: str, tmp_path: Path) -> None:
    model = Small()
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: 2 * output)
    sparse = make_sparse(model)
    with pytest.raises(dsgc.ExportError, match=r"(with|has) hooks"):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, *IMAGE))


class WithDropout(nn.Module):
    def __init__(self, always: bool) -> None:
        super().__init__()
        self.small, self.always = Small(), always

    def forward(self, x: Tensor) -> Tensor:
        x = self.small.features(x)
        x = F.dropout(x, 0.5) if self.always else F.dropout(x, 0.5, self.training)
        return cast(Tensor, self.small.classifier(x))


def test_functional_dropout_is_left_out_only_where_it_does_nothing(tmp_path: Path) -> None:
    x = torch.randn(2, *IMAGE)
    sparse = make_sparse(WithDropout(always=False))
    assert_agrees(sparse, dsgc.export(sparse, tmp_path / "model.dsgc", x), x)
    with pytest.raises(dsgc.ExportError, match="is a dropout"):
        dsgc.export(make_sparse(WithDropout(always=True)), tmp_path / "other.dsgc", x)


class Functions(nn.Module):
    """Functions of dense and of packed values, concatenation and softmax."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 20, 3, padding=1)
        self.second = nn.Conv2d(20, 36, 3, padding=1)
        self.third = nn.Conv2d(56, 48, 3, padding=1)
        self.last = nn.Linear(48, 7)
        self.function = function
        self.normalised = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a = self.function(self.first(x))
        both = torch.cat((a, self.function(self.second(a))), dim=1)
        maps = self.function(self.third(both))
        corner = maps[:, :, ::12, ::12].flatten(1)
        return self.normalised(self.last(corner)), F.softmax(maps, 1)


@pytest.mark.parametrize(
    "function",
    [
        *(nn.ELU(0.5), nn.GELU(), nn.Hardswish(), nn.LeakyReLU(0.2), nn.ReLU6(), nn.SiLU()),
        *(nn.Sigmoid(), nn.Tanh(), nn.Hardtanh(-0.5, 0.25)),
    ],
    ids=lambda function: type(function).__name__,
)
def test_functions_concatenation_and_softmax_agree(function: nn.Module, tmp_path: Path) -> None:
    model = Functions(function)
    rules = {"second": 0.75, "third": 0.75}
    config = dsgc.SparsityConfig(sparsity=0.75, rules=rules, block=8)
    sparse = dsgc.compile(model, config=config).eval()
    x = 3 * torch.randn(4, *IMAGE)
    artifact = dsgc_runtime.load(dsgc.export(sparse, tmp_path / "model.dsgc", x), threads=1)
    for batch in (4, 1, 5):
        x = 3 * torch.randn(batch, *IMAGE)
        with torch.no_grad():
            wanted = sparse(x)
        for one, other in zip(artifact(x), wanted, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)


def test_inputs_of_different_batches_are_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = Small()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return cast(Tensor, self.small.features(x) + y)

    sparse = make_sparse(Two())
    with pytest.raises(dsgc.ExportError, match="has 1 samples, the first input 4"):
        dsgc.export(sparse, tmp_path / "m.dsgc", (torch.randn(4, *IMAGE), torch.randn(1, 48, 6, 6)))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"selector": "oracle"}, "searched with 'oracle'"),
        ({"selector": "random"}, "searched with 'random'"),
        ({"scope": "sample"}, "best of a sample"),
        ({"scope": "batch"}, "best of a batch"),
        ({"share_pool": True}, "best of a pooling window"),
        ({"selector": "drs", "projection": "window"}, "drs on windows"),
    ],
)
def test_selections_that_cannot_be_exported_are_named(
    settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    sparse = make_sparse(Small(), **settings)
    with pytest.raises(dsgc.ExportError, match=said):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, *IMAGE))


def test_wrong_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    x = torch.randn(2, *IMAGE)
    with pytest.raises(dsgc.ConfigError, match=r"what dsgc\.compile gave back"):
        dsgc.export(Small(), tmp_path / "model.dsgc", x)
    sparse = make_sparse(Small())
    with pytest.raises(dsgc.ConfigError, match="unknown target 'pentium'"):
        dsgc.export(sparse, tmp_path / "model.dsgc", x, target="pentium")
    with pytest.raises(dsgc.ConfigError, match="a name or a CpuTarget, not 3"):
        dsgc.export(sparse, tmp_path / "model.dsgc", x, target=3)  # type: ignore[arg-type]
    with pytest.raises(dsgc.ConfigError, match="not a directory"):
        dsgc.export(sparse, tmp_path / "nowhere" / "model.dsgc", x)
    bad: list[tuple[Any, str]] = [
        (({"x": x},), "dict"),
        (None, "NoneType"),
        ((x, 3), "Tensor, int"),
    ]
    for write in (dsgc.export, dsgc.export_onnx):
        for inputs, named in bad:
            with pytest.raises(dsgc.ConfigError, match=f"not of {named}"):
                write(sparse, tmp_path / "model", inputs)
    reference = dsgc.compile(Small(), sparsity=0.5, backend="reference")
    with pytest.raises(dsgc.ExportError, match='backend="auto"'):
        dsgc.export(reference, tmp_path / "model.dsgc", x)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["MOST_BUFFERS", "MOST_MANIFEST"])
def test_programs_that_no_runtime_would_take_are_not_written(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse = make_sparse(Small())
    monkeypatch.setattr(f"dsgc.exporter.artifact.{limit}", 10)
    with pytest.raises(dsgc.ExportError, match="export the model in parts"):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, *IMAGE))
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_one_graph_is_refused(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.small = Small()

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.small(x) if x.sum() > 0 else self.small(-x))

    sparse = make_sparse(Branching())
    with pytest.raises(dsgc.ExportError, match="not one graph"):
        dsgc.export(sparse, tmp_path / "model.dsgc", torch.randn(2, *IMAGE))


def test_a_dense_model_can_leave_too(tmp_path: Path) -> None:
    sparse = dsgc.compile(Small(), sparsity=0.5).eval()
    x = torch.randn(3, *IMAGE)
    with pytest.warns(UserWarning, match="runs dense"):
        path = dsgc.export(sparse, tmp_path / "model.dsgc", x)
    assert_agrees(sparse, path, x)


def test_a_missing_cross_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = make_sparse(Small())
    x = torch.randn(2, *IMAGE)
    other = "aarch64" if platform.machine() != "aarch64" else "avx2"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DSGC_CROSS_CC", raising=False)
    with pytest.raises(dsgc.KernelError, match="DSGC_CROSS_CC"):
        dsgc.export(sparse, tmp_path / "model.dsgc", x, target=other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [dsgc.export, dsgc.export_onnx], ids=["artifact", "onnx"])
def test_statistics_of_the_batch_are_not_frozen(write: Callable[..., Path], tmp_path: Path) -> None:
    model = Small()
    model.features[4] = nn.BatchNorm2d(32, track_running_stats=False)
    sparse = make_sparse(model)
    with pytest.raises(dsgc.ExportError, match="no running statistics"):
        write(sparse, tmp_path / "model", torch.randn(4, *IMAGE))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:dsgc.*runs dense")
def test_exporting_first_chooses_layers_for_the_mode_of_the_module(tmp_path: Path) -> None:
    x = torch.randn(8, 3, 32, 32)

    def sparse_layers(first: Callable[[Any], object]) -> list[str]:
        torch.manual_seed(0)
        sparse = dsgc.compile(dsgc.zoo.build("vgg8", width=0.25), sparsity=0.8)
        first(sparse)
        assert sparse.training
        return [name for name, decision in sparse.decisions.items() if decision.sparse]

    wanted = sparse_layers(lambda sparse: sparse(x))
    assert sparse_layers(lambda s: dsgc.export(s, tmp_path / "m.dsgc", x)) == wanted
    assert sparse_layers(lambda s: dsgc.export_onnx(s, tmp_path / "m.onnx", x)) == wanted
    assert sparse_layers(lambda s: s.selections(x)) == wanted


def test_options_that_no_artifact_can_have(tmp_path: Path) -> None:
    sparse = make_sparse(Small())
    x = torch.randn(2, *IMAGE)
    for wrong in (None, 1, "no", np.True_):
        with pytest.raises(dsgc.ConfigError, match="dynamic_batch must be True or False"):
            dsgc.export(sparse, tmp_path / "m.dsgc", x, dynamic_batch=cast(Any, wrong))
    with pytest.raises(dsgc.ConfigError, match="no sample"):
        dsgc.export(sparse, tmp_path / "m.dsgc", x[:0], dynamic_batch=False)
    assert list(tmp_path.iterdir()) == []
