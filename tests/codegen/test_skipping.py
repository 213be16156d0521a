"""Linear layers of few samples that read no weight of an input that is zero."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dsgc.codegen import families
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.tiles import ROW_LANES, SKIP_STRIP

LIBRARIES = Libraries(KernelCache())


def products(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [samples, outputs] of weight [outputs, width], and how many inputs were read."""
    samples, width = x.shape
    strips = weight.shape[0] // SKIP_STRIP
    index = torch.full((samples, width), -1, dtype=torch.int32)
    count = torch.full((samples,), -1, dtype=torch.int32)
    LIBRARIES(families.skipping(), "nonzero_columns")(x, index, count)
    vectors = (SKIP_STRIP // ROW_LANES, ROW_LANES)
    stored = weight.view(strips, SKIP_STRIP, width).transpose(1, 2).reshape(strips, width, *vectors)
    y = torch.full((samples, strips, *vectors), torch.nan)
    kernel = LIBRARIES(families.skipping(), "skip_products")
    kernel(x, index, count, stored.contiguous(), bias.view(strips, *vectors), y)
    return y.view(samples, weight.shape[0]), count


@given(
    samples=st.integers(0, 5),
    vectors=st.integers(1, 9),
    strips=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    offset=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_products(
    samples: int, vectors: int, strips: int, density: float, offset: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    width, outputs = vectors * ROW_LANES, strips * SKIP_STRIP
    numbers = torch.randn(samples * width + offset, generator=generator)[offset:]
    x = numbers.view(samples, width)
    x[torch.rand(samples, width, generator=generator) >= density] = 0.0
    weight = torch.randn(outputs, width, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    found, count = products(x, weight, bias)
    right = (x.double() @ weight.double().t() + bias.double()).float()
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    assert torch.equal(count, (x != 0).sum(1).int())


def test_what_is_not_finite_is_seen() -> None:
    x = torch.zeros(2, ROW_LANES)
    x[0, 3], x[1, 5] = torch.nan, torch.inf
    found, _ = products(x, torch.ones(SKIP_STRIP, ROW_LANES), torch.zeros(SKIP_STRIP))
    assert found[0].isnan().all()
    assert found[1].isposinf().all()


def test_weights_of_zeros_are_not_read() -> None:
    x = torch.zeros(1, ROW_LANES)
    x[0, 1] = 2.0
    weight = torch.full((SKIP_STRIP, ROW_LANES), torch.nan)
    weight[:, 1] = 3.0
    found, _ = products(x, weight, torch.ones(SKIP_STRIP))
    assert torch.equal(found, torch.full((1, SKIP_STRIP), 7.0))
