"""conv2d on packed activations against the masked convolution of dense PyTorch."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings

from dsgc.ops import mask_to_selection
from dsgc.ops.masked import masked_conv2d
from tests.ops.cases import Convolution, Namespace, Source, compare, convolutions


def _check(namespace: Namespace, case: Convolution) -> None:
    source = case.source.build(namespace.dtype)
    weight, bias, mask = case.parameters(namespace.dtype)
    y_index, y_rowptr = mask_to_selection(mask, case.block == 1)
    values = namespace.ops.conv2d(
        *source.arguments(namespace.ops), weight, bias, y_index, y_rowptr, case.block,
        *case.geometry,
    )  # fmt: skip
    assert values.shape == (int(mask.sum()), case.block)
    size = [case.neurons, *case.out_size]
    dense = namespace.ops.unpack(values, y_index, y_rowptr, None, None, "identity", size)
    expected = masked_conv2d(source.dense(), weight, bias, mask, case.block, *case.geometry)
    leaves = [*source.leaves, weight, *([] if bias is None else [bias])]
    compare(namespace, dense, expected, leaves)


@settings(max_examples=120)
@given(case=convolutions())
def test_conv2d_is_the_masked_convolution(namespace: Namespace, case: Convolution) -> None:
    _check(namespace, case)


PLAIN = Convolution(
    Source(3, 33, 6, 5, 16, "affine_relu", 0.5, False, 5),
    neurons=40, block=8, bias=True, kernel=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1),
)  # fmt: skip


def test_a_linear_layer_is_a_convolution_on_maps_of_one_pixel(namespace: Namespace) -> None:
    for block in (0, 1, 16):
        source = replace(PLAIN.source, height=1, width=1, block=block)
        _check(namespace, replace(PLAIN, source=source, kernel=(1, 1), padding=(0, 0)))


def test_a_flattened_map_is_a_kernel_of_the_whole_map(namespace: Namespace) -> None:
    _check(namespace, replace(PLAIN, kernel=(6, 5), padding=(0, 0)))


def test_frozen_parameters_and_inputs_get_no_gradient(namespace: Namespace) -> None:
    source = PLAIN.source.build(namespace.dtype)
    weight, bias, mask = PLAIN.parameters(namespace.dtype)
    selection = mask_to_selection(mask, False)
    x, *rest = (t.detach() if isinstance(t, torch.Tensor) else t
                for t in source.arguments(namespace.ops))  # fmt: skip
    outer = (*selection, PLAIN.block, *PLAIN.geometry)
    namespace.ops.conv2d(x, *rest, weight.detach(), bias, *outer).sum().backward()
    assert weight.grad is None
    assert bias is not None
    assert bias.grad is not None
    namespace.ops.conv2d(x.requires_grad_(), *rest, weight.detach(), None, *outer).sum().backward()
    assert x.grad is not None
    assert weight.grad is None


def test_blocks_of_one_channel_may_be_listed() -> None:
    source = replace(PLAIN.source, block=1).build(torch.float64)
    weight, bias, _ = PLAIN.parameters(torch.float64)
    mask = torch.rand(3, 40, 6, 5) > 0.5
    assert source.mask is not None
    results = []
    for bits in (True, False):
        index, rowptr = mask_to_selection(source.mask, bits)
        values = torch.ops.dsgc.pack(source.x, index, rowptr, 1)
        results.append(
            torch.ops.dsgc.conv2d(
                values,
                index,
                rowptr,
                source.scale,
                source.shift,
                source.act,
                source.size,
                weight,
                bias,
                *mask_to_selection(mask, bits),
                1,
                *PLAIN.geometry,
            )
        )
    assert torch.equal(*results)
