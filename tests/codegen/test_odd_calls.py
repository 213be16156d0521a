"""Calls of generated kernels under settings and with sizes that are rare."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from dsgc.codegen.cpu import layout, neuron


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """The default of torch for new tensors; what is kept between calls is made again."""
    before = torch.get_default_dtype()
    for kept in (layout.Geometry.table, layout.every_block, neuron.far_table):
        kept.cache_clear()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _network() -> nn.Sequential:
    """Like VGG: a first convolution, pooling of both kinds, a hidden and a last linear layer."""
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(48, 48, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(192, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip
    return model.float()


RULES = {"3": 0.5, "7": 0.5, "11": 0.5}


def _results(backend: str, selector: str, block: int, x: Tensor) -> list[Tensor]:
    """What a training step and inference make of it: logits, gradients, logits."""
    config = dsgc.SparsityConfig(0.5, rules=RULES, block=block, selector=selector)
    sparse = dsgc.compile(_network(), config=config, backend=backend)
    y = sparse(x)
    F.cross_entropy(y, torch.arange(len(x)) % 10).backward()  # type: ignore[no-untyped-call]
    found = [y.detach(), *(p.grad for p in sparse.parameters() if p.grad is not None)]
    with torch.no_grad():
        return [*found, sparse.eval()(x)]


@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("selector", ["svd", "drs", "oracle", "random"])
@pytest.mark.parametrize("block", [1, 8])
def test_float32_models_run_under_a_default_of_float64(selector: str, block: int) -> None:
    x = torch.randn(12, 3, 8, 8, dtype=torch.float32)
    found, wanted = (_results(backend, selector, block, x) for backend in ("tvm", "reference"))
    for got, expected in zip(found, wanted, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("block", [1, 8, 16])
@pytest.mark.parametrize("rows", [False, True])
def test_an_empty_batch_has_empty_gradients(block: int, rows: bool) -> None:
    if rows:
        model = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 32))
    else:
        model = nn.Sequential(
            nn.Conv2d(48, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 3)
        )
    last = str(len(model) - 1)
    config = dsgc.SparsityConfig(0.5, rules={"0": 0.5, last: 0.5}, block=block)
    sparse = dsgc.compile(model, config=config, backend="tvm").eval()
    shape = (48,) if rows else (48, 7, 7)
    sparse(torch.randn(2, *shape))
    x = torch.randn(0, *shape, requires_grad=True)
    sparse(x).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape
    for parameter in sparse.parameters():
        assert parameter.grad is None or not parameter.grad.any()
