"""ONNX files compute what the semantic graph does, in a plain ONNX Runtime; torch.export too."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import dsgc
from tests.exporter.networks import IMAGE, Small, make_sparse
from tests.test_models import CASES, Case, compiled, network


def assert_agrees(sparse: dsgc.SparseModule, path: Path, inputs: Tensor) -> None:
    """The file against the semantic graph, at several batch sizes."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    for batch in (inputs.shape[0], 1, inputs.shape[0] + 3):
        x = torch.randn(batch, *inputs.shape[1:])
        with torch.no_grad():
            sparse(x)
            wanted = sparse.semantic_graph(x).numpy()
        (found,) = session.run(None, {port.name: x.numpy()})
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_network_of_the_zoo_agrees(case: Case, tmp_path: Path) -> None:
    model, images, _ = network(case, torch.float32)
    sparse = compiled(model, "reference").eval()
    path = dsgc.export_onnx(sparse, tmp_path / "model.onnx", images)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(written, strict_mode=True, data_prop=True)
    (result,) = inferred.graph.output
    assert [d.dim_value for d in result.type.tensor_type.shape.dim][1:] == [10]
    assert_agrees(sparse, path, images)


@pytest.mark.parametrize(
    "settings",
    [{"block": 1}, {"block": 8}, {"block": 32}, {"selector": "drs"}, {"ranking": "raw"}],
    ids=str,
)
def test_settings_agree(settings: dict[str, object], tmp_path: Path) -> None:
    sparse = make_sparse(Small(), **settings)
    x = torch.randn(5, *IMAGE)
    assert_agrees(sparse, dsgc.export_onnx(sparse, tmp_path / "model.onnx", x), x)


def test_an_empty_batch_has_no_results(tmp_path: Path) -> None:
    path = dsgc.export_onnx(make_sparse(Small()), tmp_path / "m.onnx", torch.randn(3, *IMAGE))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (port,) = session.get_inputs()
    for samples in (0, 2):
        (found,) = session.run(None, {port.name: np.zeros((samples, *IMAGE), np.float32)})
        assert found.shape == (samples, 7)


def test_sparse_operators_are_functions_of_standard_operators(tmp_path: Path) -> None:
    sparse = make_sparse(Small())
    x = torch.randn(5, *IMAGE)
    model = onnx.load(dsgc.export_onnx(sparse, tmp_path / "model.onnx", x))
    assert {one.domain: one.version for one in model.opset_import} == {"": 18, "dsgc": 1}
    names = {"EstimateOutputs", "BlockScores", "SelectWinners", "MaskBlocks"}
    assert {function.name for function in model.functions} == names
    assert all(node.domain == "" for function in model.functions for node in function.node)
    calls = [node.op_type for node in model.graph.node if node.domain == "dsgc"]
    # Two sparse layers, each masked before and after its batch norm.
    assert sorted(calls) == sorted([*names, *names, "MaskBlocks", "MaskBlocks"])


def test_samples_that_are_not_finite_stay_among_themselves(tmp_path: Path) -> None:
    sparse = make_sparse(Small())
    x = torch.randn(3, *IMAGE)
    path = dsgc.export_onnx(sparse, tmp_path / "model.onnx", x)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    (clean,) = session.run(None, {name: x.numpy()})
    x[1, 0, 3, 3] = torch.inf
    (found,) = session.run(None, {name: x.numpy()})
    np.testing.assert_allclose(found[[0, 2]], clean[[0, 2]], rtol=1e-6)


def test_a_fixed_batch_is_fixed(tmp_path: Path) -> None:
    sparse = make_sparse(Small())
    x = torch.randn(5, *IMAGE)
    path = dsgc.export_onnx(sparse, tmp_path / "model.onnx", x, dynamic_batch=False)
    (given,) = onnx.load(path).graph.input
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [5, *IMAGE]


@pytest.mark.parametrize(
    "settings",
    [
        {"selector": "oracle"},
        {"scope": "sample"},
        {"share_pool": True},
        {"selector": "drs", "projection": "window"},
    ],
    ids=str,
)
def test_what_cannot_be_written_is_named(settings: dict[str, object], tmp_path: Path) -> None:
    sparse = make_sparse(Small(), **settings)
    with pytest.raises(dsgc.ExportError, match=r"features\.3"):
        dsgc.export_onnx(sparse, tmp_path / "model.onnx", torch.randn(2, *IMAGE))
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(dsgc.ConfigError, match=r"what dsgc\.compile gave back"):
        dsgc.export_onnx(Small(), tmp_path / "model.onnx", torch.randn(2, *IMAGE))
    sparse = make_sparse(Small())
    with pytest.raises(dsgc.ConfigError, match=r"a tensor .* or a tuple of such, not of int"):
        dsgc.export_onnx(sparse, tmp_path / "model.onnx", [1])  # type: ignore[list-item]
    monkeypatch.setitem(sys.modules, "dsgc.exporter.onnx_functions", None)
    with pytest.raises(dsgc.MissingPackageError, match=r"dsgc\[onnx\]"):
        dsgc.export_onnx(sparse, tmp_path / "model.onnx", torch.randn(2, *IMAGE))


@pytest.mark.parametrize("backend", ["reference", "tvm"])
def test_torch_export_takes_the_module(backend: str, tmp_path: Path) -> None:
    layers = {"features.3": 0.75, "features.7": 0.75}
    config = dsgc.SparsityConfig(rules=layers)
    sparse = dsgc.compile(Small(), config=config, backend=backend).eval()
    x = torch.randn(4, *IMAGE)
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        sparse(x)
        program = torch.export.export(sparse, (x,), dynamic_shapes=(({0: batch},),))
        torch.export.save(program, tmp_path / "model.pt2")
        loaded: nn.Module = torch.export.load(tmp_path / "model.pt2").module()
        for size in (4, 7):
            y = torch.randn(size, *IMAGE)
            torch.testing.assert_close(loaded(y), sparse(y))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Small(), Small()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.one(a) - self.other(b)  # type: ignore[no-any-return]


def test_one_tensor_may_be_the_example_of_two_inputs(tmp_path: Path) -> None:
    layers = {"re:.*features.[37]": 0.75}
    config = dsgc.SparsityConfig(rules=layers)
    sparse = dsgc.compile(TwoInputs(), config=config, backend="reference").eval()
    x = torch.randn(3, *IMAGE)
    path = dsgc.export_onnx(sparse, tmp_path / "model.onnx", (x, x))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": x.numpy(), "b": (2 * x).numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, sparse(x, 2 * x).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 1])
def test_one_sample_or_none_is_an_example(batch: int, tmp_path: Path) -> None:
    sparse = make_sparse(Small()).eval()
    x = torch.randn(batch, *IMAGE).contiguous(memory_format=torch.channels_last)
    path = dsgc.export_onnx(sparse, tmp_path / "model.onnx", x)
    assert_agrees(sparse, path, torch.randn(4, *IMAGE))
