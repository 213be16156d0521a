"""Damaged and hostile artifacts are refused before any of their code runs."""

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
from tests.exporter.networks import exported

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("artifact"))[1]


class Loaded(Exception):  # noqa: N818  # it is no error: every check was passed
    """Native code would be loaded now."""


@pytest.fixture(autouse=True)
def _nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> None:
        raise Loaded(path)

    # What the runtime itself stands on is loaded before libraries cannot be loaded any more.
    assert dsgc_runtime.load is not None
    monkeypatch.setattr(ctypes, "CDLL", load)


def rewritten(
    whole: Path, folder: Path, change: Callable[[Manifest, dict[str, bytes]], None]
) -> Path:
    """A copy with another manifest or other members, hashes of the manifest made to fit."""
    with zipfile.ZipFile(whole) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(members.pop("manifest.json"))
    change(manifest, members)
    text = json.dumps(manifest).encode()
    place = folder / "changed.dsgc"
    with zipfile.ZipFile(place, "w") as archive:
        archive.comment = hashlib.sha256(text).hexdigest().encode()
        for name, data in {"manifest.json": text, **members}.items():
            archive.writestr(name, data)
    return place


def first_call(manifest: Manifest) -> Manifest:
    found: Manifest = next(step for step in manifest["program"] if "kernel" in step)
    return found


def set_at(path: str, value: object) -> Callable[[Manifest, dict[str, bytes]], None]:
    """A change of one value of the manifest, `path` being keys and numbers with dots between.

    A dot within a key is a ~.
    """

    def change(manifest: Manifest, _: dict[str, bytes]) -> None:
        parts = (part.replace("~", ".") for part in path.split("."))
        *where, last = [int(part) if part.isdigit() else part for part in parts]
        owner: Any = manifest
        for part in where:
            owner = owner[part]
        owner[last] = value

    return change


# Where in the manifest, what stands there, and what is said of it.
IMPOSSIBLE: list[tuple[str, object, str]] = [
    ("format", "1", "not one of dsgc"),
    ("inputs.0.buffer", 10**6, "no tensor of the program"),
    ("inputs.0.shape", [4, 3, 12, 12], "no batch dimension"),
    ("inputs.0.shape", ["batch", 3, 12, ["*", "batch", 1 << 45]], "not fixed"),
    ("inputs.0.shape", ["batch", 3, 12, 12000], "not of its size"),
    ("outputs.0.shape", ["batch", 70000], "not of its size"),
    ("inputs", [], "no inputs"),
    ("buffers.0.bytes", -4, "no size"),
    ("buffers.0.bytes", ["*", "batch", 1 << 45], "beyond all bounds"),
    ("buffers.0.bytes", ["+", "slots0", 1], "no size"),
    ("buffers.0.first", 9999, "ends before it begins"),
    ("buffers.2.bytes", 16, "lies beyond"),
    ("program.0.arguments.0.dtype", "float64", "no tensor"),
    ("program.0.arguments.0.shape", [1 << 40, 1 << 40], "beyond all bounds"),
    ("program.0.arguments", [{"float": "nan"}], "not a number"),
    ("program.0.arguments", [{"float": "x"}], "not a number"),
    ("program.0.arguments", [7], "not a tensor"),
    ("program.0.kernel", None, "'kernel'"),
    ("program", {}, "'program'"),
    ("layers.0.sparsity", "much", "'sparsity'"),
    ("batch.example", True, "'example'"),
    ("target.features", [1], "list of names"),
    ("files.kernels~so", None, "'sha256'"),
]


@pytest.mark.parametrize(("path", "value", "said"), IMPOSSIBLE)
def test_manifests_that_cannot_be_are_refused(
    whole: Path, tmp_path: Path, path: str, value: object, said: str
) -> None:
    with pytest.raises(dsgc_runtime.DamagedArtifactError, match=said):
        dsgc_runtime.load(rewritten(whole, tmp_path, set_at(path, value)))


def test_constants_are_not_read_beyond_their_end(whole: Path, tmp_path: Path) -> None:
    def change(manifest: Manifest, _: dict[str, bytes]) -> None:
        for step in manifest["program"]:
            for argument in step["arguments"]:
                if "constant" in argument:
                    argument["shape"] = [1 << 30]
                    return

    with pytest.raises(dsgc_runtime.DamagedArtifactError, match="lies beyond"):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))


def test_counts_are_not_used_before_they_are_read(whole: Path, tmp_path: Path) -> None:
    def change(manifest: Manifest, _: dict[str, bytes]) -> None:
        first_call(manifest)["arguments"][0]["shape"] = ["slots0"]

    with pytest.raises(dsgc_runtime.DamagedArtifactError, match="before it is known"):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))


def test_the_batch_is_not_read(whole: Path, tmp_path: Path) -> None:
    def change(manifest: Manifest, _: dict[str, bytes]) -> None:
        next(step for step in manifest["program"] if "read" in step)["read"] = "batch"

    with pytest.raises(dsgc_runtime.DamagedArtifactError, match="reads the batch"):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))


def test_missing_weights_are_named(whole: Path, tmp_path: Path) -> None:
    def change(manifest: Manifest, _: dict[str, bytes]) -> None:
        for step in manifest["program"]:
            for argument in step["arguments"]:
                if "constant" in argument:
                    argument["constant"] = "elsewhere"

    with pytest.raises(dsgc_runtime.DamagedArtifactError, match="elsewhere"):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))


@pytest.mark.parametrize("name", ["kernels.so", "weights.safetensors", "graph.txt"])
def test_altered_members_are_noticed(whole: Path, tmp_path: Path, name: str) -> None:
    def change(_: Manifest, members: dict[str, bytes]) -> None:
        data = bytearray(members[name])
        data[len(data) // 2] ^= 1
        members[name] = bytes(data)

    with pytest.raises(dsgc_runtime.DamagedArtifactError, match=f"{name} has been altered"):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))


@pytest.mark.parametrize("name", ["../../evil.so", "/etc/passwd", "extra"])
def test_other_members_are_refused(whole: Path, tmp_path: Path, name: str) -> None:
    def change(_: Manifest, members: dict[str, bytes]) -> None:
        members[name] = b"x"

    with pytest.raises(dsgc_runtime.DamagedArtifactError, match="it holds"):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))


def test_weights_that_are_no_safetensors_are_refused(whole: Path, tmp_path: Path) -> None:
    def change(manifest: Manifest, members: dict[str, bytes]) -> None:
        data = members["weights.safetensors"] = b"\xff" * 64
        about = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        manifest["files"]["weights.safetensors"] = about

    with pytest.raises(dsgc_runtime.DamagedArtifactError, match="weights cannot be read"):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))


def test_a_newer_format_says_what_to_install(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(dsgc_runtime.NewerFormatError, match="format 2"):
        dsgc_runtime.load(rewritten(whole, tmp_path, set_at("format", 2)))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("target.machine", "riscv64", "for riscv64"),
        ("target.features", ["avx9000"], "needs avx9000"),
    ],
)
def test_other_processors_are_named(
    whole: Path, tmp_path: Path, path: str, value: object, said: str
) -> None:
    with pytest.raises(dsgc_runtime.WrongMachineError, match=said):
        dsgc_runtime.load(rewritten(whole, tmp_path, set_at(path, value)))


def test_no_file_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        dsgc_runtime.load(tmp_path / "nothing.dsgc")
    (tmp_path / "text.dsgc").write_text("hello")
    with pytest.raises(dsgc_runtime.DamagedArtifactError, match="not an artifact"):
        dsgc_runtime.load(tmp_path / "text.dsgc")


@given(st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_a_byte_is_noticed(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Truncated, or with bytes changed: refused, or equal in all that counts."""
    content = bytearray(whole.read_bytes())
    place = tmp_path / "changed.dsgc"
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    place.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    # All parts have their hashes: if it passes, only padding of the container was changed.
    with pytest.raises((dsgc_runtime.ArtifactError, Loaded)):
        dsgc_runtime.load(place)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=10,
)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths to everything in a JSON value."""
    found: list[tuple[str | int, ...]] = [path] if path else []
    if isinstance(value, dict):
        return found + [deep for key, one in value.items() for deep in places(one, (*path, key))]
    if isinstance(value, list):
        return found + [deep for i, one in enumerate(value) for deep in places(one, (*path, i))]
    return found


@given(st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_the_manifest_is_refused_or_harmless(
    whole: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """Whatever a value becomes, loading ends in a typed error or with every tensor in bounds."""

    def change(manifest: Manifest, _: dict[str, bytes]) -> None:
        *where, last = data.draw(st.sampled_from(places(manifest)))
        owner: Any = manifest
        for part in where:
            owner = owner[part]
        owner[last] = data.draw(JSON)

    with pytest.raises((dsgc_runtime.ArtifactError, Loaded)):
        dsgc_runtime.load(rewritten(whole, tmp_path, change))
