"""Batch normalisation with masks and on packed values, against a literal computation."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dsgc.ops import expand_mask, mask_to_selection
from dsgc.ops.normalization import MaskedBatchNorm, PackedBatchNorm
from tests.ops.cases import Namespace, Source, compare, sources

Statistics = tuple[list[Tensor], list[Tensor], list[int]]


def literal_statistics(y: Tensor, wide: Tensor, over: str) -> Statistics:
    """Mean, biased variance and count of each channel of y [N, C, H, W], one channel at a time."""
    mean, var, count = [], [], []
    zero = y.sum() * 0  # not a constant, so that a gradient can be asked for
    for c in range(y.shape[1]):
        entries = y[:, c][wide[:, c]] if over == "active" else (y * wide)[:, c].flatten()
        count.append(entries.numel())
        mean.append(entries.mean() if entries.numel() else zero)
        var.append(entries.var(correction=0) if entries.numel() else zero)
    return mean, var, count


def literal_batch_norm(bn: nn.BatchNorm2d, y: Tensor, wide: Tensor, over: str) -> Tensor:
    """What `bn` makes of y under the double mask; moves its running statistics."""
    mean, var, count = literal_statistics(y, wide, over)
    out = torch.zeros_like(y)
    if bn.training and bn.num_batches_tracked is not None:
        bn.num_batches_tracked += 1
    for c in range(y.shape[1]):
        m, v = mean[c], var[c]
        if bn.training and bn.running_mean is not None and count[c]:
            assert bn.running_var is not None
            assert bn.num_batches_tracked is not None
            rate = 1 / int(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
            unbiased = v.detach() * count[c] / max(count[c] - 1, 1)
            bn.running_mean[c] += rate * (m.detach() - bn.running_mean[c])
            bn.running_var[c] += rate * (unbiased - bn.running_var[c])
        if not bn.training and bn.running_mean is not None and bn.running_var is not None:
            m, v = bn.running_mean[c], bn.running_var[c]
        z = (y[:, c] - m) / torch.sqrt(v + bn.eps)
        if bn.affine:
            z = z * bn.weight[c] + bn.bias[c]
        out[:, c] = torch.where(wide[:, c], z, torch.zeros_like(z))
    return out


def _norm(channels: int, dtype: torch.dtype, **options: object) -> nn.BatchNorm2d:
    if dtype == torch.float32:
        # Entries that are almost equal multiply rounding errors by 1 / sqrt(eps).
        options.setdefault("eps", 0.01)
    bn = nn.BatchNorm2d(channels, **options).to(dtype)  # type: ignore[arg-type]
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (bn.weight, bn.bias, bn.running_mean, bn.running_var):
            if tensor is not None:
                tensor.copy_(torch.rand(channels, generator=make) + 0.5)
    return bn


def _check_state(namespace: Namespace, actual: nn.Module, expected: nn.Module) -> None:
    state = expected.state_dict()
    for name, value in actual.state_dict().items():
        namespace.check(value.double(), state[name].double(), name)


OPTIONS = [
    {},
    {"momentum": None},
    {"affine": False},
    {"track_running_stats": False},
    {"momentum": 0.3, "eps": 0.001},
]
options = st.sampled_from(OPTIONS)
overs = st.sampled_from(("active", "all"))
plain = sources((1, 8, 16), ("identity",)).filter(
    lambda s: s.batch * s.height * s.width > 1
)  # PyTorch refuses a single position


@settings(max_examples=60)
@given(
    source=sources((0, 1, 8, 16), ("identity",)), over=overs, relu=st.booleans(),
    weighted=st.booleans(), biased=st.booleans(),
)  # fmt: skip
def test_batch_affine(
    namespace: Namespace, source: Source, over: str, relu: bool, weighted: bool, biased: bool
) -> None:
    case, ops, eps = source.build(namespace.dtype), namespace.ops, 0.01
    x, index, rowptr, *_ = case.arguments(ops)
    channels = source.channels
    make = torch.Generator().manual_seed(2)
    weight, bias = (
        (torch.rand(channels, generator=make, dtype=namespace.dtype) + 0.5).requires_grad_()
        if given else None
        for given in (weighted, biased)
    )  # fmt: skip
    scale, shift, *found = ops.batch_affine(
        x, index, rowptr, weight, bias, case.size, relu, over, eps
    )
    y = case.x.relu() if relu else case.x
    wide = torch.ones_like(y, dtype=torch.bool)
    if case.mask is not None:
        wide = expand_mask(case.mask, case.block, channels)
    means, variances, counts = literal_statistics(y, wide, over)
    mean, var = torch.stack(means), torch.stack(variances)
    count = torch.tensor(counts, dtype=namespace.dtype)
    unbiased = var * count / (count - 1).clamp(min=1)
    for actual, expected in zip(found, (mean, var, unbiased, count), strict=True):
        namespace.check(actual, expected)
        assert not actual.requires_grad
    # A single entry is exactly its own mean.
    unit = torch.where(count > 1, (var + eps).rsqrt(), 0)
    gain = unit if weight is None else unit * weight
    moved = -mean * gain if bias is None else bias - mean * gain
    leaves = [case.x, *(v for v in (weight, bias) if v is not None)]
    compare(namespace, scale, gain, leaves)
    compare(namespace, shift, moved, leaves)
    compare(namespace, scale * shift, gain * moved, leaves)


@settings(max_examples=60)
@given(source=plain, over=overs, relu=st.booleans(), option=options, training=st.booleans())
def test_packed_and_masked_batch_norm(
    namespace: Namespace, source: Source, over: str, relu: bool, option: dict[str, object],
    training: bool,
) -> None:  # fmt: skip
    case, ops = source.build(namespace.dtype), namespace.ops
    literal = _norm(source.channels, namespace.dtype, **option).train(training)
    masked = MaskedBatchNorm(copy.deepcopy(literal), over)
    packed = PackedBatchNorm(copy.deepcopy(literal), over, namespace.name)
    x, index, rowptr, *_ = case.arguments(ops)
    assert case.mask is not None
    wide = expand_mask(case.mask, case.block, source.channels)
    y = (case.x.relu() if relu else case.x) * wide
    for _ in range(2):
        expected = literal_batch_norm(literal, y, wide, over)
        compare(namespace, masked(y, case.mask), expected, [case.x])
        through, scale, shift = packed(x, index, rowptr, case.size, relu)
        act = "relu_affine" if relu else "affine"
        dense = ops.unpack(through, index, rowptr, scale, shift, act, case.size)
        compare(namespace, dense, expected, [case.x])
    _check_state(namespace, masked.bn, literal)
    _check_state(namespace, packed.bn, literal)


def test_gradients_of_weight_and_bias(namespace: Namespace) -> None:
    source = Source(3, 20, 4, 5, 8, "identity", 0.4, False, 3)
    case, ops = source.build(namespace.dtype), namespace.ops
    literal = _norm(20, namespace.dtype)
    x, index, rowptr, *_ = case.arguments(ops)
    _, scale, shift = PackedBatchNorm(literal, "active", namespace.name)(
        x, index, rowptr, case.size, False
    )
    dense = ops.unpack(x, index, rowptr, scale, shift, "affine_relu", case.size)
    assert case.mask is not None
    wide = expand_mask(case.mask, case.block, 20)
    expected = literal_batch_norm(literal, case.x * wide, wide, "active").relu()
    compare(namespace, dense, expected, [case.x, literal.weight, literal.bias])


def test_over_everything_is_pytorchs_own_batch_norm() -> None:
    y = torch.randn(4, 20, 3, 3, dtype=torch.float64)
    mask = torch.ones(4, 3, 3, 3, dtype=torch.bool)
    for over in ("active", "all"):
        bn, own = _norm(20, torch.float64), _norm(20, torch.float64)
        torch.testing.assert_close(MaskedBatchNorm(bn, over)(y, mask), own(y))
        _check_state(Namespace.named("dsgc"), bn, own)


def test_rows_of_a_linear_layer() -> None:
    y = torch.randn(6, 20, dtype=torch.float64)
    mask = torch.rand(6, 3, 1, 1) > 0.4
    wide = expand_mask(mask, 8, 20)
    bn = nn.BatchNorm1d(20).double()
    out = MaskedBatchNorm(bn, "active")(y * wide.view(6, 20), mask)
    maps = (y * wide.view(6, 20)).view(6, 20, 1, 1)
    expected = literal_batch_norm(_plain_copy(bn), maps, wide, "active")
    torch.testing.assert_close(out, expected.view(6, 20))


def _plain_copy(bn: nn.BatchNorm1d) -> nn.BatchNorm2d:
    fresh = nn.BatchNorm2d(bn.num_features).double()
    fresh.weight, fresh.bias = bn.weight, bn.bias
    return fresh


def test_a_channel_without_entries_keeps_its_statistics(namespace: Namespace) -> None:
    mask = torch.ones(2, 3, 3, 3, dtype=torch.bool)
    mask[:, 1] = False
    y = torch.randn(2, 20, 3, 3, dtype=namespace.dtype) * expand_mask(mask, 8, 20)
    bn = _norm(20, namespace.dtype)
    before = copy.deepcopy(bn)
    index, rowptr = mask_to_selection(mask, False)
    x = namespace.ops.pack(y, index, rowptr, 8)
    PackedBatchNorm(bn, "active", namespace.name)(x, index, rowptr, [20, 3, 3], False)
    assert bn.running_mean is not None
    assert before.running_mean is not None
    same = bn.running_mean == before.running_mean
    assert same.tolist() == [False] * 8 + [True] * 8 + [False] * 4


def test_half_precision_keeps_its_dtype() -> None:
    y = torch.randn(4, 16, 3, 3, dtype=torch.bfloat16)
    mask = torch.ones(4, 2, 3, 3, dtype=torch.bool)
    out = MaskedBatchNorm(nn.BatchNorm2d(16), "active")(y, mask)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, nn.BatchNorm2d(16)(y), atol=0.05, rtol=0.05)


def test_what_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(ValueError, match="BatchNorm is needed"):
        MaskedBatchNorm(nn.ReLU(), "active")
    with pytest.raises(ValueError, match="over"):
        PackedBatchNorm(nn.BatchNorm2d(3), "some", "dsgc")
    one = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="more than one value"):
        MaskedBatchNorm(nn.BatchNorm2d(8), "active")(torch.zeros(1, 8, 1, 1), one)
    with pytest.raises(ValueError, match="more than one value"):
        PackedBatchNorm(nn.BatchNorm2d(8), "all", "dsgc")(
            torch.zeros(1, 8), *mask_to_selection(one, False), [8, 1, 1], False
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_reach_the_statistics(namespace: Namespace, value: float) -> None:
    x = torch.randn(4, 16, 3, 3, dtype=namespace.dtype)
    x[1, 3, 1, 1] = value
    arguments = (None, None, None, None, [16, 3, 3], False, "active", 0.1)
    scale, shift, mean, var, unbiased, _ = namespace.ops.batch_affine(x, *arguments)
    for found in (scale, shift, var, unbiased):
        assert [c for c in range(16) if found[c].isnan()] == [3]
    assert not mean[3].isfinite()
