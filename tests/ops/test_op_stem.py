"""stem_conv2d against F.conv2d, and maps that backward makes again."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import dsgc
from dsgc.ops.recompute import Recomputable, Recompute, RecomputedConv2d
from tests.ops.cases import Namespace, Pair


@settings(max_examples=60)
@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 5),
    outputs=st.sampled_from((5, 16, 48, 64, 128)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    channels_last=st.booleans(),
)
def test_stem_conv2d(
    namespace: Namespace, batch: int, channels: int, outputs: int, size: Pair, kernel: Pair,
    stride: int, padding: int, dilation: int, bias: bool, channels_last: bool,
) -> None:  # fmt: skip
    if any(s + 2 * padding < dilation * (k - 1) + 1 for s, k in zip(size, kernel, strict=True)):
        return
    make = torch.Generator().manual_seed(batch * 100 + outputs)
    x = torch.randn(batch, channels, *size, generator=make).to(namespace.dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, *kernel, generator=make).to(namespace.dtype)
    vector = torch.randn(outputs, generator=make).to(namespace.dtype) if bias else None
    window = ((stride,) * 2, (padding,) * 2, (dilation,) * 2)
    found = namespace.ops.stem_conv2d(x, weight, vector, *window)
    expected = F.conv2d(x, weight, vector, *window)
    namespace.check(found, expected, "values")
    assert found.permute(0, 2, 3, 1).is_contiguous()


def _arguments() -> tuple[Tensor, Tensor, None, Pair, Pair, Pair]:
    return torch.randn(2, 3, 5, 5), torch.randn(16, 3, 3, 3), None, (1, 1), (1, 1), (1, 1)


def test_a_map_is_made_once_for_all_who_hold_it(namespace: Namespace) -> None:
    arguments = _arguments()
    again = Recomputable(torch.ops.dsgc, arguments)
    holders = [again.hold(), again.hold()]
    first, second = (holder.take() for holder in holders)
    assert first is second
    assert torch.equal(first, torch.ops.dsgc.stem_conv2d(*arguments))
    # Backward a second time, over a retained graph: made again.
    assert again.take() is not first


def test_a_weight_changed_in_between_is_noticed() -> None:
    arguments = _arguments()
    again = Recomputable(torch.ops.dsgc, arguments).hold()
    arguments[1].add_(1)
    with pytest.raises(RuntimeError, match="modified in place"):
        again.take()


def test_without_gradients_nothing_is_kept_for_later() -> None:
    with torch.no_grad():
        assert Recompute("dsgc")(*_arguments()) is None


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu())
        out: Tensor = self.head(x.relu().mean((2, 3)))
        return out


def test_the_first_map_is_not_kept_and_gradients_are_the_same() -> None:
    torch.manual_seed(0)
    dense = _Net()
    config = dsgc.SparsityConfig(sparsity=0.5, rules={"second": 0.5})
    sparse = dsgc.compile(copy.deepcopy(dense), config=config, backend="tvm")
    x, labels = torch.randn(4, 3, 8, 8), torch.randint(0, 5, (4,))
    kept: list[Tensor] = []

    def note(value: Tensor) -> Tensor:
        kept.append(value)
        return value

    with sparse.hold_selection():
        F.cross_entropy(sparse(x), labels)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
            loss = F.cross_entropy(sparse(x), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        found = {
            name: p.grad.clone() for name, p in sparse.named_parameters() if p.grad is not None
        }
        sparse.zero_grad()
        F.cross_entropy(sparse.semantic_graph(x), labels).backward()  # type: ignore[no-untyped-call]
    assert any(isinstance(m, RecomputedConv2d) for m in sparse.lowered_graph.modules())
    assert (4, 32, 8, 8) not in {tuple(value.shape) for value in kept}
    for name, parameter in sparse.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)
