"""Inputs of all kinds: other sizes, uneven and empty batches, other dtypes, NaN."""

from __future__ import annotations

import pytest
import torch

import dsgc
from tests.passes.agreement import assert_graphs_agree
from tests.test_module import X, sparse_net


def test_other_image_size_keeps_layers_and_selectors() -> None:
    sparse = sparse_net().eval()
    sparse(X)
    selectors = dict(sparse.get_submodule("dsgc_selectors").named_children())
    decisions = sparse.decisions
    small = torch.randn(3, 5, 6, 10)
    assert sparse(small).shape == (3, 10)
    torch.testing.assert_close(sparse.lowered_graph(small), sparse.semantic_graph(small))
    assert dict(sparse.get_submodule("dsgc_selectors").named_children()) == selectors
    assert sparse.decisions == decisions


def test_any_batch_size_runs_on_the_same_graph() -> None:
    sparse = sparse_net().eval()
    whole = sparse(X)
    graph = sparse.lowered_graph
    torch.testing.assert_close(sparse(X[:1]), whole[:1])
    torch.testing.assert_close(sparse(X[:3]), whole[:3])
    assert sparse.lowered_graph is graph
    torch.testing.assert_close(graph(X[:1]), whole[:1])
    assert sparse(X[:0]).shape == (0, 10)
    assert graph(X[:0]).shape == (0, 10)


def test_wrong_shape_is_an_input_error() -> None:
    sparse = sparse_net()
    with pytest.raises(dsgc.InputError, match=r"\(4, 3, 8, 8\)"):
        sparse(torch.randn(4, 3, 8, 8))
    sparse(X)
    with pytest.raises(dsgc.InputError, match=r"\(4, 3, 8, 8\)"):
        sparse(torch.randn(4, 3, 8, 8))


def test_empty_batch_has_no_statistics() -> None:
    with pytest.raises(dsgc.InputError, match="empty batch"):
        sparse_net().train()(X[:0])


def test_call_without_a_tensor() -> None:
    with pytest.raises(dsgc.InputError, match="without a tensor"):
        sparse_net()([1, 2])


def test_complex_input() -> None:
    with pytest.raises(dsgc.UnsupportedError, match="complex64"):
        sparse_net()(X.to(torch.complex64))


def test_nan_stays_in_its_sample() -> None:
    sparse = sparse_net().eval()
    clean = sparse(X)
    x = X.clone()
    x[1, 0, 3, 3] = torch.nan
    for result in (sparse(x), sparse.lowered_graph(x)):
        assert result[1].isnan().any()
        torch.testing.assert_close(result[[0, 2, 3]], clean[[0, 2, 3]])


def test_tvm_backend_refuses_float64() -> None:
    sparse = sparse_net(backend="tvm").double()
    with pytest.raises(dsgc.UnsupportedError, match="float64"):
        sparse(X.double())


def test_auto_backend_runs_float64_by_reference() -> None:
    sparse = sparse_net(backend="auto").double()
    sparse(X.double())
    assert sparse.backend == "reference"


def test_change_of_dtype() -> None:
    sparse = sparse_net().eval()
    single = sparse(X)
    torch.testing.assert_close(sparse.double()(X.double()).float(), single, rtol=1e-4, atol=1e-4)
    assert_graphs_agree(sparse, X.double())


def test_reference_backend_honours_autocast() -> None:
    sparse = sparse_net().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = sparse(X)
    torch.testing.assert_close(result.float(), sparse(X), rtol=0.2, atol=0.2)
