"""The published DSG: neuron-wise, sample 0's threshold, double mask, statistics over all.

The transcription follows the algorithm of the DSG paper (Liu et al., ICLR 2019, arXiv 1810.00859)
and its authors' released code, step by step, on dense tensors.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgc.config import LayerSettings
from dsgc.ops.masked import masked_conv2d
from dsgc.ops.normalization import MaskedBatchNorm, PackedBatchNorm
from dsgc.select import Selector

PUBLISHED = LayerSettings(
    name="conv", sparsity=0.8, block=1, scope="batch", selector="drs", projection="window",
    ranking="raw", epsilon=0.5, reduced_dimension=None, bn_stats="all",
    share_pool=False, tile=(1, 1), seed=3,
)  # fmt: skip


def transcription_of_the_mask(
    x: Tensor, weight: Tensor, R: Tensor, keep: float, stride: int, padding: int
) -> Tensor:
    """M [N, K, P, Q] of a convolution of x [N, C, H, W], weight [K, C, r, s], projection R."""
    n_K = weight.shape[0]
    W_r = weight.view(n_K, -1) @ R
    X_r = F.unfold(x, weight.shape[2:], stride=stride, padding=padding).transpose(1, 2) @ R
    V = (X_r @ W_r.t()).transpose(1, 2)
    n_PQ = V.shape[2]
    topk = torch.topk(V[0].flatten(), int(keep * n_K * n_PQ)).values
    t = topk.min()
    M = F.threshold(V, float(t), 0.0).abs().sign()
    P = (x.shape[2] + 2 * padding - weight.shape[2]) // stride + 1
    return M.view(x.shape[0], n_K, P, -1)


def transcription_of_the_layer(x: Tensor, conv: nn.Conv2d, bn: nn.BatchNorm2d, M: Tensor) -> Tensor:
    """conv, mask, ReLU, BN over all positions, the same mask: in this order."""
    y = F.relu(F.conv2d(x, conv.weight, None, conv.stride, conv.padding) * M)
    mean = y.mean((0, 2, 3), keepdim=True)
    var = ((y - mean) ** 2).mean((0, 2, 3), keepdim=True)
    y = (y - mean) / torch.sqrt(var + bn.eps)
    y = y * bn.weight.view(1, -1, 1, 1) + bn.bias.view(1, -1, 1, 1)
    return y * M


def _layer(stride: int) -> tuple[nn.Conv2d, nn.BatchNorm2d, Selector]:
    torch.manual_seed(1)
    conv = nn.Conv2d(12, 26, 3, stride, 1, bias=False).double()
    bn = nn.BatchNorm2d(26, eps=0.001).double()
    nn.init.uniform_(bn.weight, 0.5, 1.5)
    nn.init.normal_(bn.bias)
    selector = Selector(
        conv, settings=PUBLISHED, seed=PUBLISHED.seed, kernel=(3, 3), stride=(stride, stride),
        padding=(1, 1), dilation=(1, 1), in_channels=12,
    )  # fmt: skip
    return conv, bn, selector


def _mask(selector: Selector, conv: nn.Conv2d, x: Tensor, keep: float) -> Tensor:
    assert selector.projection is not None
    R = selector.projection.to(x) / math.sqrt(3)
    return transcription_of_the_mask(x, conv.weight.detach(), R, keep, conv.stride[0], 1)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_mask(stride: int, keep: float) -> None:
    conv, _, selector = _layer(stride)
    selector.density = keep
    x = torch.randn(4, 12, 9, 8, dtype=torch.float64)
    mask = selector(x)
    assert torch.equal(mask, _mask(selector, conv, x, keep) == 1)
    # Strictly above: sample 0 itself keeps one fewer than asked.
    assert mask[0].sum() == int(keep * mask[0].numel()) - 1


def test_projection_has_the_published_shape() -> None:
    _, _, selector = _layer(1)
    assert selector.projection is not None
    dimension = int(4 * math.log(26) / (0.5**2 / 2 - 0.5**3 / 3))
    assert selector.projection.shape == (12 * 9, dimension)


def test_zero_never_survives() -> None:
    """Kept at a negative threshold: values below zero, but not zeros."""
    conv, _, selector = _layer(1)
    selector.density = 0.95
    x = torch.randn(3, 12, 6, 6, dtype=torch.float64)
    x[1] = 0
    mask = selector(x)
    assert not mask[1].any()
    assert torch.equal(mask, _mask(selector, conv, x, 0.95) == 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_layer_and_its_gradients(stride: int) -> None:
    conv, bn, selector = _layer(stride)
    x = torch.randn(4, 12, 9, 8, dtype=torch.float64, requires_grad=True)
    M = _mask(selector, conv, x.detach(), 0.2)
    leaves = (x, conv.weight, bn.weight, bn.bias)
    expected = transcription_of_the_layer(x, conv, bn, M)
    direction = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, leaves, direction)

    window = ((stride, stride), (1, 1), (1, 1))
    y = masked_conv2d(x, conv.weight, None, selector(x), 1, *window).relu()
    semantic = MaskedBatchNorm(bn, "all")(y, selector(x))

    size, ops = list(expected.shape[1:]), torch.ops.dsgc
    dense = (x, None, None, None, None, "identity", [12, 9, 8])
    selection = selector.packed(*dense, torch.ops.dsgc)
    values = ops.conv2d(*dense, conv.weight, None, *selection, 1, *window)
    _, scale, shift = PackedBatchNorm(bn, "all", "dsgc")(values, *selection, size, True)
    packed = ops.unpack(values, *selection, scale, shift, "relu_affine", size)

    for actual in (semantic, packed):
        torch.testing.assert_close(actual, expected)
        got = torch.autograd.grad(actual, leaves, direction)
        torch.testing.assert_close(got, wanted)
