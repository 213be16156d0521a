"""Opens an artifact and checks all of it before any of its native code is loaded."""

from __future__ import annotations

import hashlib
import json
import platform
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from dsgc_runtime.errors import ArtifactError, DamagedArtifactError, WrongMachineError
from dsgc_runtime.manifest import DTYPES, Manifest, constants_of

__all__ = ["Archive", "open_archive"]

_MEMBERS = ("manifest.json", "graph.txt", "kernels.so", "weights.safetensors")
_MOST_MANIFEST = 64 << 20


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
            parts = {name: _part(archive, name, manifest) for name in _MEMBERS[1:]}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise DamagedArtifactError(f"{place} is not an artifact: {error}") from error
    except ArtifactError as error:
        raise type(error)(f"{place}: {error}") from error
    try:
        _check_machine(manifest)
        constants = _constants(parts["weights.safetensors"], manifest)
    except ArtifactError as error:
        raise type(error)(f"{place}: {error}") from error
    graph = parts["graph.txt"].decode("utf-8", "replace")
    return Archive(manifest, graph, parts["kernels.so"], constants)


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
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise DamagedArtifactError(f"{name} is compressed or larger than {most} bytes")
    with archive.open(info) as file:
        return file.read(most + 1)


def _part(archive: zipfile.ZipFile, name: str, manifest: Manifest) -> bytes:
    digest, size = manifest.files.get(name, ("", -1))
    data = _read(archive, name, max(size, 0))
    if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
        raise DamagedArtifactError(f"{name} has been altered")
    return data


def _constants(data: bytes, manifest: Manifest) -> dict[str, NDArray[Any]]:
    try:
        found = load_tensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DamagedArtifactError(f"its weights cannot be read: {error}") from error
    if missing := constants_of(manifest.program) - set(found):
        raise DamagedArtifactError(f"it has no weights {str(sorted(missing))[:200]}")
    for name, array in found.items():
        if array.dtype.name not in DTYPES:
            raise DamagedArtifactError(f"the weights {name} are {array.dtype}")
    # Copies are aligned for any dtype, wherever they lay in the file.
    return {name: np.array(array, order="C") for name, array in found.items()}


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
