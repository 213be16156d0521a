"""Opens an artifact and checks all of it before any of its native code is loaded."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dsgc_runtime.errors import ArtifactError, DamagedArtifactError, WrongMachineError
from dsgc_runtime.manifest import DTYPES, Manifest, constants_of

__all__ = ["Archive", "open_archive"]

_MEMBERS = ("manifest.json", "graph.txt", "kernels.so", "weights.safetensors")
_MOST_MANIFEST = 64 << 20
_PIECE = 1 << 20


@dataclass(frozen=True)
class Archive:
    """The checked parts of an artifact."""

    manifest: Manifest
    graph: str
    kernels: bytes
    constants: dict[str, NDArray[Any]]


def open_archive(path: str | Path) -> Archive:
    """Read and check an artifact; nothing of it is run.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedArtifactError: it is not an artifact, or not as it was written.
        NewerFormatError: this runtime is too old for it.
        WrongMachineError: it is for another processor.
    """
    place = Path(path)
    try:
        with zipfile.ZipFile(place) as archive:
            manifest = Manifest.of(_manifest(archive))
            _check_machine(manifest)
            graph, kernels = (_part(archive, name, manifest) for name in _MEMBERS[1:3])
            constants = _constants(archive, manifest)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedArtifactError(f"{place} is not an artifact: {error}") from error
    except ArtifactError as error:
        raise type(error)(f"{place}: {error}") from error
    return Archive(manifest, graph.decode("utf-8", "replace"), kernels, constants)


def _manifest(archive: zipfile.ZipFile) -> object:
    names = [info.filename for info in archive.infolist()]
    if sorted(names) != sorted(_MEMBERS):
        raise DamagedArtifactError(f"it holds {str(names)[:200]}, not {', '.join(_MEMBERS)}")
    text = _read(archive, _MEMBERS[0], _MOST_MANIFEST)
    if hashlib.sha256(text).hexdigest().encode() != archive.comment:
        raise DamagedArtifactError("its manifest has been altered")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedArtifactError(f"its manifest cannot be read: {error}") from error


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    return b"".join(_pieces(archive, name, most))


def _pieces(archive: zipfile.ZipFile, name: str, most: int) -> Iterator[bytes]:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise DamagedArtifactError(f"{name} is compressed or larger than {most} bytes")
    with archive.open(info) as file:
        while piece := file.read(_PIECE):
            yield piece


def _copy(archive: zipfile.ZipFile, name: str, manifest: Manifest, to: BinaryIO) -> None:
    """Write a member to a file, piece by piece, and check that it is as it was written."""
    digest, size = manifest.files.get(name, ("", -1))
    seen, found = 0, hashlib.sha256()
    for piece in _pieces(archive, name, max(size, 0)):
        seen += len(piece)
        found.update(piece)
        to.write(piece)
    if seen != size or found.hexdigest() != digest:
        raise DamagedArtifactError(f"{name} has been altered")


def _part(archive: zipfile.ZipFile, name: str, manifest: Manifest) -> bytes:
    held = io.BytesIO()
    _copy(archive, name, manifest, held)
    return held.getvalue()


def _constants(archive: zipfile.ZipFile, manifest: Manifest) -> dict[str, NDArray[Any]]:
    """The weights, by way of a file, so that they are in memory once only."""
    found: dict[str, NDArray[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="dsgc-") as folder:
        place = Path(folder) / _MEMBERS[3]
        with place.open("wb") as file:
            _copy(archive, _MEMBERS[3], manifest, file)
        try:
            with safe_open(place, framework="numpy") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    found[name] = tensors.get_tensor(name)
        except (SafetensorError, ValueError, KeyError, OverflowError) as error:
            raise DamagedArtifactError(f"its weights cannot be read: {error}") from error
    if missing := constants_of(manifest.program) - set(found):
        raise DamagedArtifactError(f"it has no weights {str(sorted(missing))[:200]}")
    for name, array in found.items():
        if array.dtype.name not in DTYPES:
            raise DamagedArtifactError(f"the weights {name} are {array.dtype}")
    return {name: np.require(array, requirements=["C", "W", "A"]) for name, array in found.items()}


def _check_machine(manifest: Manifest) -> None:
    here = platform.machine()
    if manifest.machine != here:
        raise WrongMachineError(
            f"it is for {manifest.machine}, and this is {here}: export with another target"
        )
    present = _features()
    missing = [name for name in manifest.features if present and name not in present]
    if missing:
        raise WrongMachineError(
            f"it was compiled for {manifest.target!r} and needs {', '.join(missing)}, which this "
            "processor does not have: export with another target, such as 'avx2'"
        )


def _features() -> set[str]:
    """What this processor can do, named without underscores; empty if that is not known."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return {flag.replace("_", "") for flag in value.split()}
    return set()
