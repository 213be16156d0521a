"""The projection made of a weight's leading directions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dsgc.select.projection import leading_projection


def test_what_was_made_without_memory_is_not_kept() -> None:
    """Shapes are asked for first, by tensors that have nothing else."""
    with FakeTensorMode() as mode:
        fake = leading_projection(mode.from_tensor(torch.zeros(24, 56, 3, 3)), 16, window=False)
    assert isinstance(fake, FakeTensor)
    weight = torch.randn(24, 56, 3, 3)
    found = leading_projection(weight, 16, window=False)
    assert type(found) is Tensor
    torch.testing.assert_close(found.t() @ found, torch.eye(16), atol=1e-5, rtol=0)
    with FakeTensorMode() as mode:
        again = leading_projection(mode.from_tensor(weight), 16, window=False)
    assert again.shape == found.shape
