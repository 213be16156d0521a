"""The C++ runtime believes no number in the files of an artifact: container, weights, kernels.

The programs are built with sanitizers, which end them at the first wrong access.
"""

from __future__ import annotations

import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import dsgc_runtime
from tests.exporter.cpp import PASSED, Loader, Programs, hand_made, kernels, replace
from tests.exporter.test_damage import Manifest, rewritten

# The container


@pytest.mark.parametrize("name", ["kernels.so", "weights.safetensors", "graph.txt"])
def test_altered_members_are_noticed(loader: Loader, bare: Path, tmp_path: Path, name: str) -> None:
    def change(_: Manifest, members: dict[str, bytes]) -> None:
        data = bytearray(members[name])
        data[0] ^= 1
        members[name] = bytes(data)

    found = loader.load(rewritten(bare, tmp_path, change))
    assert found == f"DamagedArtifact: {name} has been altered"


def patched(bare: Path, folder: Path, change: Callable[[bytearray], None]) -> Path:
    content = bytearray(bare.read_bytes())
    change(content)
    place = folder / "changed.dsgc"
    place.write_bytes(content)
    return place


def at(signature: bytes, offset: int, value: bytes) -> Callable[[bytearray], None]:
    """Puts `value` behind the last place where `signature` stands."""

    def change(content: bytearray) -> None:
        begin = content.rindex(signature) + offset
        content[begin : begin + len(value)] = value

    return change


ENTRY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (at(ENTRY, 10, b"\x08\x00"), "weights.safetensors is compressed"),
        (at(ENTRY, 8, b"\x01\x00"), "weights.safetensors is compressed or encrypted"),
        (at(ENTRY, 20, b"\xff\xff\xff\x7f"), "is compressed"),
        (at(ENTRY, 20, b"\xff\xff\xff\x7f\xff\xff\xff\x7f"), "a member is cut off"),
        (at(ENTRY, 20, b"\xff" * 8), "a member is cut off"),
        (at(ENTRY, 42, b"\xff\xff\xff\x7f"), "a member is cut off"),
        (at(ENTRY, 42, b"\x01"), "does not begin where it should"),
        (at(ENTRY, 28, b"\xff\xff"), "directory is cut off"),
        (at(ENTRY, 30, b"\xff\xff"), "directory is cut off"),
        (at(ENTRY, 46, b"kernels.so\x00\x00"), "it holds"),
        (at(LOCAL, 26, b"\xff\xff"), "a member has two names"),
        (at(LOCAL, 30, b"W"), "a member has two names"),
        (at(END, 12, b"\xff\xff\xff\xff"), "not where it should be"),
        (at(END, 16, b"\xff\xff\xff\xff"), "not where it should be"),
        (at(END, 20, b"\x41"), "does not end as one"),
        (at(END, 22, b"0" * 64), "manifest has been altered"),
        (bytearray.clear, "too short"),
    ],
    ids=range(17),
)
def test_containers_that_cannot_be_are_refused(
    loader: Loader, bare: Path, tmp_path: Path, change: Callable[[bytearray], None], said: str
) -> None:
    found = loader.load(patched(bare, tmp_path, change))
    assert found.startswith("DamagedArtifact: ")
    assert said in found


@pytest.mark.parametrize("name", ["../../evil.so", "graph.txt", "extra"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_other_members_are_refused(loader: Loader, bare: Path, tmp_path: Path, name: str) -> None:
    place = patched(bare, tmp_path, lambda _: None)
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr(name, b"x")
    assert "it holds [" in loader.load(place)


def test_compressed_members_are_refused(loader: Loader, bare: Path, tmp_path: Path) -> None:
    place = tmp_path / "changed.dsgc"
    with (
        zipfile.ZipFile(bare) as archive,
        zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as made,
    ):
        made.comment = archive.comment
        for name in archive.namelist():
            made.writestr(name, archive.read(name))
    assert "is compressed" in loader.load(place)


def test_large_files_are_read(
    loader: Loader, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 2 GB zip files have numbers of 64 bits: here already beyond 1 KB."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    place = rewritten(bare, tmp_path, lambda *_: None)
    content = place.read_bytes()
    assert b"PK\x06\x06" in content
    assert PASSED in loader.load(place)
    for signature, offset in ((b"PK\x06\x06", 40), (b"PK\x06\x06", 48), (b"PK\x06\x07", 8)):
        changed = patched(place, tmp_path, at(signature, offset, b"\xff" * 8))
        assert "not where it should be" in loader.load(changed)
        changed.replace(place)
        place.write_bytes(content)


# The weights


def header(content: object, *, twice: bool = False) -> bytes:
    """The beginning of weights; `twice` if they say everything twice."""
    text = json.dumps(content).encode()
    if twice:
        text = text[:-1] + b", " + text[1:]
    return len(text).to_bytes(8, "little") + text


def tensor(begin: int, end: int, shape: object = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "too short"),
        (b"\xff" * 64, "header is too large"),
        (b"\x08" + b"\0" * 7 + b"not json", "cannot be read"),
        (header([1]), "no object"),
        (header({"a": 1}), "no dtype"),
        (header({"a": {"dtype": "F32"}}), "no shape"),
        (header({"a": tensor(0, 8, [-2])}) + b"\0" * 8, "no shape"),
        (header({"a": tensor(0, 8)}), "0 bytes of data"),
        (header({"a": tensor(0, 8)}) + b"\0" * 9, "9 bytes of data"),
        (header({"a": tensor(4, 12)}) + b"\0" * 12, "does not begin"),
        (header({"a": tensor(0, 8), "b": tensor(4, 12)}) + b"\0" * 12, "does not begin"),
        (header({"a": tensor(8, 0)}) + b"\0" * 8, "another size"),
        (header({"a": tensor(0, 8, [3])}) + b"\0" * 8, "another size"),
        (header({"a": tensor(0, 0, [1 << 62, 1 << 62])}), "too large"),
        (header({"a": tensor(0, 8, dtype="F64")}) + b"\0" * 8, "are F64"),
        (header({"a": tensor(0, 0, [0])}, twice=True), "a is there twice"),
        (save({"a": np.zeros(2, np.float32)}), "it has no weights"),
    ],
    ids=range(17),
)
def test_weights_that_cannot_be_are_refused(
    loader: Loader, bare: Path, tmp_path: Path, data: bytes, said: str
) -> None:
    def change(manifest: Manifest, members: dict[str, bytes]) -> None:
        replace(manifest, members, "weights.safetensors", data)

    found = loader.load(rewritten(bare, tmp_path, change))
    assert found.startswith("DamagedArtifact: ")
    assert said in found


# The kernels


def test_kernels_that_cannot_be_loaded_are_refused(
    loader: Loader, native: Programs, tmp_path: Path
) -> None:
    good = kernels(tmp_path)
    step = {"kernel": "fail", "arguments": []}
    place = tmp_path / "hand.dsgc"
    assert loader.load(hand_made(place, good, [step])) == "loaded"
    missing = hand_made(place, good, [{**step, "kernel": "elsewhere"}])
    assert "there is no kernel 'elsewhere' in it" in loader.load(missing)
    source = tmp_path / "other.c"
    source.write_text("int other(void) { return 0; }\n")
    other = tmp_path / "other.so"
    command = [dsgc_runtime.compiler_command(), "-shared", "-fPIC", str(source), "-o", str(other)]
    subprocess.run(command, check=True)
    said = loader.load(hand_made(place, other.read_bytes(), [step]))
    assert said == "LibraryError: the kernels run on no known OpenMP"


def test_shared_objects_are_not_believed(native: Programs, tmp_path: Path) -> None:
    """Every number that leads to the symbols: of the file, its segments, its dynamic section."""
    good = kernels(tmp_path)
    place = tmp_path / "changed.so"
    segments = [good[at : at + 56] for at in range(64, 64 + 56 * good[56], 56)]
    dynamic = next(one for one in segments if one[0] == 2)
    begin = int.from_bytes(dynamic[8:16], "little")
    length = int.from_bytes(dynamic[32:40], "little")
    numbers = [*range(16, 64, 8), *range(64, 64 + len(segments) * 56, 8)]
    numbers += range(begin, begin + length, 8)
    with Loader(native, "symbols") as loader:
        for at in numbers:
            for value in (b"\xff" * 8, b"\xf0" + b"\0" * 7, b"\0" * 8):
                place.write_bytes(good[:at] + value + good[at + 8 :])
                said = loader.load(place)
                assert said in ("defined", "nothing", f"DamagedArtifact: {PASSED}"), said
        for length in (0, 3, 63, 64, 500, len(good) // 2):
            place.write_bytes(good[:length])
            assert loader.load(place) == f"DamagedArtifact: {PASSED}"
        place.write_bytes(good)
        assert loader.load(place) == "defined"
