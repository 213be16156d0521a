"""activate, pack and unpack against dense PyTorch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings

from dsgc.ops import expand_mask
from tests.ops.cases import Namespace, Source, compare, sources


@settings(max_examples=60)
@given(source=sources())
def test_unpack_is_the_dense_activation(namespace: Namespace, source: Source) -> None:
    case = source.build(namespace.dtype)
    dense = namespace.ops.unpack(*case.arguments(namespace.ops))
    assert dense.is_contiguous(memory_format=torch.channels_last)
    compare(namespace, dense, case.dense(), case.leaves)


@settings(max_examples=60)
@given(source=sources())
def test_activate_keeps_the_form(namespace: Namespace, source: Source) -> None:
    case, ops = source.build(namespace.dtype), namespace.ops
    x, index, rowptr, *rest = case.arguments(ops)
    settled = ops.activate(x, index, rowptr, *rest)
    assert settled.shape == x.shape
    dense = ops.unpack(settled, index, rowptr, None, None, "identity", case.size)
    compare(namespace, dense, case.dense(), case.leaves)


@settings(max_examples=40)
@given(source=sources((1, 8, 16), ("identity",)))
def test_pack_gathers_and_zeroes_the_tail(namespace: Namespace, source: Source) -> None:
    case, ops = source.build(namespace.dtype), namespace.ops
    values, index, rowptr, *_ = case.arguments(ops)
    assert case.mask is not None
    full = expand_mask(case.mask, case.block, source.channels)
    assert values.shape == (int(case.mask.sum()), case.block)
    assert values.count_nonzero() == (full & (case.x != 0)).sum()
    again = ops.pack(case.dense(), index, rowptr, case.block)
    assert torch.equal(again, values)


@pytest.mark.parametrize("act", ["identity", "affine"])
def test_outputs_never_alias_inputs(namespace: Namespace, act: str) -> None:
    for block in (0, 8):
        case = Source(2, 8, 3, 3, block, act, 1.0, False, 0).build(namespace.dtype)
        arguments = case.arguments(namespace.ops)
        for op in (namespace.ops.activate, namespace.ops.unpack):
            out = op(*arguments)
            assert out.untyped_storage().data_ptr() != arguments[0].untyped_storage().data_ptr()


def test_unknown_activations_are_refused() -> None:
    x = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        torch.ops.dsgc.activate(x, None, None, None, None, "gelu", [2, 3, 3])
    with pytest.raises(ValueError, match="scale"):
        torch.ops.dsgc.activate(x, None, None, None, None, "affine", [2, 3, 3])
    with pytest.raises(ValueError, match="size"):
        torch.ops.dsgc.activate(x, None, None, None, None, "relu", [2, 3, 4])
