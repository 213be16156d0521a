"""Kernels on rows of dense maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dsgc.codegen import families
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.pooling import pool_window

LIBRARIES = Libraries(KernelCache())


def test_nan_is_the_largest_of_a_window_wherever_it_is() -> None:
    """Comparisons with NaN are false, whichever of the two is the largest so far."""
    x = torch.rand(4, 1, 2, 2) - 3.0
    for n in range(4):
        x[n, 0, n // 2, n % 2] = float("nan")
    plain = torch.rand(2, 1, 2, 2) - 3.0
    x = torch.cat([x, plain, torch.full((1, 1, 2, 2), float("-inf"))])
    rows = F.pad(x.view(-1, 1), (0, 15, 0, 1))  # a row of zeros behind
    window = pool_window((1, 2, 2), (2, 2), (2, 2), (0, 0), False)
    out = torch.empty(len(x) + 1, 16)
    LIBRARIES(families.rows(), "max_pool_rows")(
        rows, torch.ones(1), out, window.table(), window.source_area
    )
    assert torch.equal(out[:-1, 0].isnan(), torch.tensor([True] * 4 + [False] * 3))
    assert torch.equal(out[4:-1, 0], F.max_pool2d(x[4:], 2).flatten())
    assert not out[-1].any()
