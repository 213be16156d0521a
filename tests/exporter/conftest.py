"""The C++ runtime, built once a test run, and what its tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.exporter.cpp import Loader, Programs, build_arm, build_native, replace, shared
from tests.exporter.networks import exported
from tests.exporter.test_damage import Manifest, rewritten


@pytest.fixture(scope="session")
def native(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """For this machine, with sanitizers."""
    with shared(tmp_path_factory, "cpp-native") as (folder, fresh):
        return build_native(folder, fresh)


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """For 64-bit ARM, under an emulator."""
    with shared(tmp_path_factory, "cpp-arm") as (folder, fresh):
        return build_arm(folder, fresh)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose kernels cannot be loaded: all else is checked before them."""
    folder = tmp_path_factory.mktemp("artifact")

    def change(manifest: Manifest, members: dict[str, bytes]) -> None:
        replace(manifest, members, "kernels.so", b"not native code")

    return rewritten(exported(folder)[1], folder, change)


@pytest.fixture(scope="module")
def loader(native: Programs) -> Iterator[Loader]:
    with Loader(native) as found:
        yield found
