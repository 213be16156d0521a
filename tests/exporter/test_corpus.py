"""What fuzzing and reviews have found stays found: every file of the corpus ends as it should."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.fuzz.artifacts
from dsgc_runtime.archive import MOST_MANIFEST, open_archive
from dsgc_runtime.errors import DamagedArtifactError
from dsgc_runtime.manifest import MOST_BUFFERS
from dsgc_runtime.session import Session
from tests.fuzz.artifacts import MACHINE, no_kernels, outcome, smallest, zipped

CORPUS = Path(tests.fuzz.artifacts.__file__).with_name("corpus")
OUTCOMES: dict[str, list[str]] = json.loads((CORPUS / "outcomes.json").read_text("utf-8"))


def test_every_file_has_an_outcome() -> None:
    assert {place.name for place in CORPUS.glob("*.dsgc")} == set(OUTCOMES)


@pytest.mark.parametrize("name", OUTCOMES)
def test_it_ends_as_it_should(name: str) -> None:
    wanted, said = OUTCOMES[name]
    found, text = outcome(CORPUS / name)
    assert found == wanted, text
    assert said in text


def test_the_smallest_artifact_has_all_that_is_checked(tmp_path: Path) -> None:
    """Each entry that is left out is missed: what is fuzzed gets as far as every check."""
    place = tmp_path / "changed.dsgc"
    manifest, members = smallest()
    place.write_bytes(zipped(manifest, members))
    assert outcome(place) == ("ok", "")
    for name in manifest:
        place.write_bytes(zipped({key: manifest[key] for key in manifest if key != name}, members))
        assert outcome(place)[0] == "DamagedArtifactError", name


def many_buffers(manifest: dict[str, Any], _: dict[str, bytes]) -> None:
    manifest["buffers"] += [manifest["buffers"][0]] * (MOST_BUFFERS - 3)


def long_manifest(manifest: dict[str, Any], _: dict[str, bytes]) -> None:
    manifest["dsgc"] = "0" * MOST_MANIFEST


def many_tensors(_: dict[str, Any], members: dict[str, bytes]) -> None:
    length = MOST_MANIFEST + 8
    members["weights.safetensors"] = length.to_bytes(8, "little") + b"{" + b" " * length


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (many_buffers, "16385 buffers are too many"),
        (long_manifest, "larger than 16777216 bytes"),
        (many_tensors, "a header of 16777224 bytes"),
    ],
)
def test_what_would_take_long_is_refused(
    change: Callable[[dict[str, Any], dict[str, bytes]], None], said: str, tmp_path: Path
) -> None:
    """These files would be too large to be kept."""
    manifest, members = smallest()
    change(manifest, members)
    place = tmp_path / "changed.dsgc"
    place.write_bytes(zipped(manifest, members))
    found, text = outcome(place)
    assert (found, said in text) == ("DamagedArtifactError", True)


def test_nothing_is_counted_in_an_empty_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a call can know: how long the vector is may have been read itself."""
    monkeypatch.setattr(platform, "machine", lambda: MACHINE)
    manifest, members = smallest()
    manifest["program"][1]["arguments"][0]["shape"] = [0]
    place = tmp_path / "changed.dsgc"
    place.write_bytes(zipped(manifest, members))
    archive = open_archive(place)
    session = Session(archive.manifest, archive.constants, no_kernels(), 2)
    with pytest.raises(DamagedArtifactError, match="counted -1 n"):
        session.run([np.zeros((2, 2), np.float32)])
