"""The C++ runtime refuses what the Python runtime refuses, and never crashes on it.

The programs are built with sanitizers, which end them at the first wrong access.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dsgc_runtime
import tests.fuzz.artifacts
from tests.exporter.cpp import PASSED, Loader, Programs
from tests.exporter.test_damage import (
    IMPOSSIBLE,
    JSON,
    Loaded,
    Manifest,
    first_call,
    places,
    rewritten,
    set_at,
)

Change = Callable[[Manifest, dict[str, bytes]], None]


@pytest.fixture
def _python_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> None:
        raise Loaded(path)

    assert dsgc_runtime.load is not None
    monkeypatch.setattr(ctypes, "CDLL", load)


def python_says(path: Path) -> str:
    """The type of the error, as the C++ runtime calls it; empty if all checks are passed."""
    try:
        dsgc_runtime.load(path)
    except dsgc_runtime.ArtifactError as error:
        return type(error).__name__.removesuffix("Error")
    except Loaded:
        return ""
    raise AssertionError("native code was loaded")


def says(loader: Loader, path: Path) -> str:
    """The same of the C++ runtime."""
    said = loader.load(path)
    return "" if PASSED in said else said.partition(":")[0]


def test_what_passes_ends_at_its_kernels(loader: Loader, bare: Path) -> None:
    assert loader.load(bare) == f"DamagedArtifact: {PASSED}"


@pytest.mark.parametrize(("path", "value", "said"), IMPOSSIBLE)
def test_manifests_that_cannot_be_are_refused(
    loader: Loader, bare: Path, tmp_path: Path, path: str, value: object, said: str
) -> None:
    found = loader.load(rewritten(bare, tmp_path, set_at(path, value)))
    assert found.startswith("DamagedArtifact: ")
    assert said in found


def far_constant(manifest: Manifest, _: dict[str, bytes]) -> None:
    for argument in constants_of(manifest):
        argument["shape"] = [1 << 30]


def missing_constant(manifest: Manifest, _: dict[str, bytes]) -> None:
    for argument in constants_of(manifest):
        argument["constant"] = "elsewhere"


def constants_of(manifest: Manifest) -> list[dict[str, Any]]:
    steps = manifest["program"]
    return [one for step in steps for one in step["arguments"] if "constant" in one]


def early_count(manifest: Manifest, _: dict[str, bytes]) -> None:
    first_call(manifest)["arguments"][0]["shape"] = ["slots0"]


def batch_that_is_read(manifest: Manifest, _: dict[str, bytes]) -> None:
    next(step for step in manifest["program"] if "read" in step)["read"] = "batch"


def one_buffer_for_both(manifest: Manifest, _: dict[str, bytes]) -> None:
    port = manifest["inputs"][0]
    manifest["outputs"][0] = {**port, "name": "y"}


def deep_size(manifest: Manifest, _: dict[str, bytes]) -> None:
    size: object = 1
    for _level in range(50):
        size = ["+", size, 1]
    manifest["buffers"][0]["bytes"] = size


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (far_constant, "lies beyond"),
        (missing_constant, "it has no weights elsewhere"),
        (early_count, "'slots0' is used before it is known"),
        (batch_that_is_read, "the program reads the batch"),
        (one_buffer_for_both, "is another's"),
        (deep_size, "no size"),
        (set_at("format", 2), "NewerFormat: "),
        (set_at("target.machine", "riscv64"), "WrongMachine: "),
        (set_at("target.features", ["avx9000"]), "needs avx9000"),
    ],
    ids=lambda one: getattr(one, "__name__", None),
)
def test_other_changes_are_refused(
    loader: Loader, bare: Path, tmp_path: Path, change: Change, said: str
) -> None:
    assert said in loader.load(rewritten(bare, tmp_path, change))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "cannot be read"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": 1' + b"0" * 400 + b"}", "cannot be read"),
        (b'{"format": 1} x', "cannot be read"),
        (b'"\xff"', "cannot be read"),
        (b"[1]", "not one of dsgc"),
        (b'{"format": 1, "target": {"' + b"x" * 70_000 + b'": 1}}', "'batch'"),
    ],
    ids=range(7),
)
def test_manifests_that_are_no_json_are_refused(
    loader: Loader, bare: Path, tmp_path: Path, text: bytes, said: str
) -> None:
    place = tmp_path / "changed.dsgc"
    with zipfile.ZipFile(bare) as archive, zipfile.ZipFile(place, "w") as made:
        made.comment = hashlib.sha256(text).hexdigest().encode()
        for name in archive.namelist():
            made.writestr(name, text if name == "manifest.json" else archive.read(name))
    found = loader.load(place)
    assert found.startswith("DamagedArtifact: ")
    assert said in found


# Anything

CORPUS = Path(tests.fuzz.artifacts.__file__).with_name("corpus")
OUTCOMES: dict[str, list[str]] = json.loads((CORPUS / "outcomes.json").read_text("utf-8"))
# Numbers that no double holds are no JSON here.
ELSEWHERE = {"format-of-many-digits.dsgc": "DamagedArtifact"}


def test_what_fuzzing_has_found_ends_as_in_python(loader: Loader) -> None:
    for name, (kind, _) in OUTCOMES.items():
        wanted = "" if kind == "ok" else kind.removesuffix("Error")
        assert says(loader, CORPUS / name) == ELSEWHERE.get(name, wanted), name


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (set_at("inputs", []), 3),
        (set_at("format", 2), 4),
        (set_at("target.machine", "riscv64"), 5),
    ],
)
def test_the_program_ends_with_a_code_for_each_error(
    native: Programs, bare: Path, tmp_path: Path, change: Change, code: int
) -> None:
    changed = rewritten(bare, tmp_path, change)
    assert native.run(changed, "x.npy", expect=code).stderr.startswith(f"error: {changed}: ")


@pytest.mark.usefixtures("_python_loads_nothing")
@given(st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_byte_is_noticed(
    loader: Loader, bare: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(bare.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    place = tmp_path / "changed.dsgc"
    place.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert says(loader, place) in ("DamagedArtifact", "")
    if python_says(place):
        assert says(loader, place) == "DamagedArtifact"


@pytest.mark.usefixtures("_python_loads_nothing")
@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_the_manifest_ends_as_in_python(
    loader: Loader, bare: Path, tmp_path: Path, data: st.DataObject
) -> None:
    def change(manifest: Manifest, _: dict[str, bytes]) -> None:
        *where, last = data.draw(st.sampled_from(places(manifest)))
        owner: Any = manifest
        for part in where:
            owner = owner[part]
        owner[last] = data.draw(JSON)

    place = rewritten(bare, tmp_path, change)
    assert says(loader, place) == python_says(place)
