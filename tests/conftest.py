"""Settings for all tests: one thread and a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The first example of a test may compile kernels: time says nothing about right or wrong. The same
# examples every time, so that a failure is a change; new ones: --hypothesis-profile=explore.
settings.register_profile("dsgc", deadline=None, derandomize=True, max_examples=60)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("dsgc")


@pytest.fixture(autouse=True)
def _reproducible() -> Iterator[None]:
    """One thread and a fixed seed for each test; both are put back afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
