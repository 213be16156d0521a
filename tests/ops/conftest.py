"""Every operator test runs once for each namespace of kernels there is."""

from __future__ import annotations

import importlib.util

import pytest

from tests.ops.cases import Namespace

NAMESPACES = ["dsgc"]
if importlib.util.find_spec("tvm") is not None:
    NAMESPACES.append("dsgc_cpu")


@pytest.fixture(scope="session", params=NAMESPACES)
def namespace(request: pytest.FixtureRequest) -> Namespace:
    """The kernels under test."""
    return Namespace.named(str(request.param))
