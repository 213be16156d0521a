"""The module on generated kernels: the same results, in float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dsgc
from dsgc import zoo
from tests.passes.agreement import assert_graphs_agree, compiled, unsettle
from tests.passes.test_lowering import Classifier, Net, Residual, _cat
from tests.test_module import X, sparse_net

RULES = {"re:.*conv.*": 0.6}
# Enough samples that no channel of a norm is left with one entry, whose variance is all rounding.
BATCH = torch.randn(12, 5, 8, 8, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("block", [1, 8, 16])
def test_training_step_agrees(block: int) -> None:
    sparse = sparse_net("tvm", block=block).train()
    unsettle(sparse)
    sparse(BATCH).square().mean().backward()
    assert sparse.backend == "tvm"
    assert_graphs_agree(sparse, BATCH, tolerance=1e-4)
    assert_graphs_agree(sparse, BATCH[:5], tolerance=1e-4)
    assert_graphs_agree(sparse, BATCH[:1], tolerance=1e-3)


def test_neuron_wise_as_published() -> None:
    sparse = sparse_net("tvm", block=1, scope="batch", projection="window", bn_stats="all")
    unsettle(sparse)
    sparse(BATCH)
    assert_graphs_agree(sparse, BATCH, tolerance=1e-4)


# Built inside a test, after its seed is set: gradients that are zero but for rounding are compared.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "classifier": lambda: Classifier(nn.Flatten()),
    "residual": lambda: Residual(torch.add, 16),
    "concatenation": lambda: Residual(_cat, 48),
    "pooling": lambda: Net(nn.ReLU(), nn.BatchNorm2d(20), nn.MaxPool2d(3, 2, 1)),
    "dropout": lambda: Net(nn.BatchNorm2d(20), nn.ReLU(), nn.Dropout()),
    "activation": lambda: Net(nn.BatchNorm2d(20), nn.GELU()),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_agree(name: str) -> None:
    model = unsettle(MODELS[name]())
    sparse = compiled(model, BATCH, backend="tvm", rules=RULES, block=8)
    assert sparse.backend == "tvm"
    assert_graphs_agree(sparse, BATCH, tolerance=1e-4)


def test_same_selection_as_the_reference() -> None:
    """Without holding: kernels rank blocks as the reference does, but for rounding."""
    sparse = sparse_net("tvm").eval()
    torch.testing.assert_close(sparse(X), sparse.semantic_graph(X), rtol=1e-3, atol=1e-4)


def test_auto_takes_the_kernels() -> None:
    sparse = sparse_net("auto")
    sparse(X)
    assert sparse.backend == "tvm"


def test_autocast_is_ignored_with_one_warning() -> None:
    sparse = sparse_net("tvm").eval()
    expected = sparse(X)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.warns(UserWarning, match="autocast is ignored"):
            result = sparse(X)
        torch.testing.assert_close(result, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            sparse(X)


def test_nan_stays_in_its_sample() -> None:
    sparse = sparse_net("tvm").eval()
    clean = sparse(X)
    x = X.clone()
    x[1, 0, 3, 3] = torch.nan
    result = sparse(x)
    assert result[1].isnan().any()
    torch.testing.assert_close(result[[0, 2, 3]], clean[[0, 2, 3]])


def test_empty_batch_in_eval_mode() -> None:
    sparse = sparse_net("tvm").eval()
    sparse(X)
    assert sparse(X[:0]).shape == (0, 10)


def test_trains() -> None:
    """A few steps of SGD fit random labels of one batch."""
    sparse = sparse_net("tvm").train()
    labels = torch.arange(4)
    optimizer = torch.optim.Adam(sparse.parameters(), 0.01)
    losses: list[Tensor] = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(sparse(X), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.5 * losses[0]


def test_input_of_another_dtype_than_the_model() -> None:
    with pytest.raises(dsgc.InputError, match="float64"):
        sparse_net("tvm")(X.double())


def test_training_goes_on_after_inference_mode() -> None:
    """Buffers that live on between calls are made in either mode and used in both."""
    torch.manual_seed(0)
    model = zoo.build("vgg8", width=0.25)
    rules = {"features.3": 0.5, "features.7": 0.5, "classifier.1": 0.5}
    sparse = dsgc.compile(model, config=dsgc.SparsityConfig(sparsity=0.5, rules=rules))
    images = torch.randn(2, 3, 32, 32)
    sparse.eval()
    with torch.inference_mode():
        seen = sparse(images)
    sparse.train()
    loss = sparse(images).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    with torch.inference_mode():
        sparse.eval()
        again = sparse(images)
    sparse.train()
    sparse(images).sum().backward()
    assert seen.shape == again.shape == (2, 10)
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in sparse.parameters())
