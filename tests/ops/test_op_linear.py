"""dense_linear against F.linear, and where the compiler puts it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import dsgc
from tests.ops.cases import Namespace


@settings(max_examples=60)
@given(
    rows=st.integers(0, 9) | st.sampled_from((97, 256, 257)),
    inputs=st.sampled_from((1, 16, 48, 60, 272)),
    outputs=st.sampled_from((1, 10, 16, 48)),
    bias=st.booleans(),
    layout=st.sampled_from(("plain", "transposed", "strided", "misaligned")),
    needs=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_dense_linear(
    namespace: Namespace, rows: int, inputs: int, outputs: int, bias: bool, layout: str,
    needs: tuple[bool, bool, bool],
) -> None:  # fmt: skip
    make = torch.Generator().manual_seed(rows * 100 + inputs + outputs)

    def random(*shape: int) -> Tensor:
        return _laid_out(torch.randn(shape, generator=make).to(namespace.dtype), layout)

    x, weight, grad = random(rows, inputs), random(outputs, inputs), random(rows, outputs)
    vector = random(1, outputs)[0] if bias else None
    found = namespace.ops.dense_linear(x, weight, vector)
    namespace.check(found, F.linear(x, weight, vector), "values")
    gradients = namespace.ops.dense_linear_backward(grad, x, weight, *needs)
    expected = (grad @ weight, grad.t() @ x, grad.sum(0))
    for name, need, one, other in zip(("x", "w", "b"), needs, gradients, expected, strict=True):
        namespace.check(one, other if need else other.new_empty(0), name)


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values, elsewhere in memory."""
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "strided":
        return torch.stack((x, x), -1)[..., 0]
    if layout == "misaligned":
        flat = x.new_empty(x.numel() + 1)[1:]
        return flat.view(x.shape).copy_(x)
    return x


class _Net(nn.Module):
    """A sparse convolution, and linear layers that are too small a part of the work."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 64, 3, padding=1)
        self.wide = nn.Linear(64 * 16, 1024)
        self.norm = nn.BatchNorm1d(1024)
        self.small = nn.Linear(1024, 256)
        self.head = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.second(self.first(x).relu()).relu(), 4).flatten(1)
        x = self.norm(self.wide(x)).relu()
        out: Tensor = self.head(self.small(x).relu())
        return out


def _compiled(net: nn.Module) -> dsgc.SparseModule:
    rules = {"second": 0.5, "wide": None, "small": None}
    config = dsgc.SparsityConfig(sparsity=0.5, rules=rules)
    return dsgc.compile(net, config=config, backend="tvm")


def _operators(sparse: dsgc.SparseModule) -> list[str]:
    wanted = torch.ops.dsgc_cpu.dense_linear.default
    return [node.name for node in sparse.lowered_graph.graph.nodes if node.target is wanted]


def test_large_layers_that_stay_dense_get_it_and_train_the_same() -> None:
    torch.manual_seed(0)
    dense = _Net()
    sparse = _compiled(copy.deepcopy(dense))
    x, labels = torch.randn(6, 3, 16, 16), torch.randint(0, 5, (6,))
    with sparse.hold_selection():
        F.cross_entropy(sparse(x), labels).backward()  # type: ignore[no-untyped-call]
        found = {n: p.grad.clone() for n, p in sparse.named_parameters() if p.grad is not None}
        sparse.zero_grad()
        F.cross_entropy(sparse.semantic_graph(x), labels).backward()  # type: ignore[no-untyped-call]
    assert _operators(sparse) == ["wide"]
    assert set(found) == {name for name, _ in sparse.named_parameters()}
    for name, parameter in sparse.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)
    # More rows than the kernels take, and one.
    for rows in (300, 1):
        x = torch.randn(rows, 3, 16, 16)
        sparse.eval()
        torch.testing.assert_close(sparse(x), sparse.semantic_graph(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["hook", "parametrization", "subclass", "float64"])
def test_what_is_no_ordinary_linear_layer_stays_as_it_is(change: str) -> None:
    torch.manual_seed(0)
    net, called = _Net(), []
    if change == "hook":
        net.wide.register_forward_hook(lambda *_: called.append(1))
    elif change == "parametrization":
        parametrizations.weight_norm(net.wide)
    elif change == "subclass":
        net.wide.__class__ = _Scaled
    x = torch.randn(2, 3, 16, 16)
    if change == "float64":
        sparse = dsgc.compile(net.double(), config=_compiled(_Net()).config, backend="reference")
        x = x.double()
    else:
        sparse = _compiled(net)
    sparse.eval()
    torch.testing.assert_close(sparse(x), sparse.semantic_graph(x), rtol=1e-4, atol=1e-5)
    assert _operators(sparse) == []
    assert bool(called) == (change == "hook")


class _Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)
