"""Opens an artifact and checks all of it before any of its native code is loaded."""

from __future__ import annotations

import hashlib
import io
import json
import math
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

from dsgc_runtime.errors import ArtifactError, DamagedArtifactError, WrongMachineError, shown
from dsgc_runtime.manifest import Manifest, constants_of

__all__ = ["MOST_MANIFEST", "Archive", "open_archive"]

_MEMBERS = ("manifest.json", "graph.txt", "kernels.so", "weights.safetensors")
MOST_MANIFEST = 16 << 20  # and as much for the header of weights; decoded, twenty times as much
_PIECE = 1 << 20
# `DTYPES` by the names that safetensors has for them.
_TENSOR_DTYPES = {"F32": "float32", "I32": "int32", "I64": "int64", "I8": "int8", "U8": "uint8"}
# What `zipfile` raises for files that are none, or whose names and numbers cannot be.
_BAD_CONTAINER = (
    zipfile.BadZipFile, EOFError, NotImplementedError, OverflowError, RuntimeError, ValueError,
)  # fmt: skip


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
        with _container(place) as archive:
            _check_members(archive, place.stat().st_size)
            manifest = Manifest.of(_manifest(archive))
            _check_machine(manifest)
            graph, kernels = (_part(archive, name, manifest) for name in _MEMBERS[1:3])
            constants = _constants(archive, manifest)
    except ArtifactError as error:
        raise type(error)(f"{place}: {error}") from error
    return Archive(manifest, graph.decode("utf-8", "replace"), kernels, constants)


def _container(place: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(place)
    except _BAD_CONTAINER as error:
        raise DamagedArtifactError(f"it is not an artifact: {error}") from error


def _check_members(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse other members than those of an artifact, and any that lie outside of the file."""
    names = [info.filename for info in archive.infolist()]
    if sorted(names) != sorted(_MEMBERS):
        raise DamagedArtifactError(f"it holds {shown(names)}, not {', '.join(_MEMBERS)}")
    for info in archive.infolist():
        if not 0 <= info.header_offset < size:
            raise DamagedArtifactError(f"{info.filename} lies outside of the file")


def _manifest(archive: zipfile.ZipFile) -> object:
    text = _read(archive, _MEMBERS[0], MOST_MANIFEST)
    if hashlib.sha256(text).hexdigest().encode() != archive.comment:
        raise DamagedArtifactError("its manifest has been altered")
    try:
        return json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedArtifactError(f"its manifest cannot be read: {error}") from error


def _read(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    return b"".join(_pieces(archive, name, most))


def _pieces(archive: zipfile.ZipFile, name: str, most: int) -> Iterator[bytes]:
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise DamagedArtifactError(f"{name} is compressed or larger than {most} bytes")
    try:
        with archive.open(info) as file:
            while piece := file.read(_PIECE):
                yield piece
    except _BAD_CONTAINER as error:
        raise DamagedArtifactError(f"{name} cannot be read: {error}") from error


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
    """The weights that the program reads, by way of a file: they are in memory once only.

    The library checks the file and is asked for no data: it would map all of it as well.
    """
    wanted = constants_of(manifest.program)
    found: dict[str, NDArray[Any]] = {}
    with tempfile.TemporaryDirectory(prefix="dsgc-") as folder:
        place = Path(folder) / _MEMBERS[3]
        with place.open("w+b") as file:
            _copy(archive, _MEMBERS[3], manifest, file)
            start = _check_header(file)
        try:
            with safe_open(place, framework="numpy") as tensors:
                offsets = _offsets(place, start)
                for name in tensors.keys():  # noqa: SIM118  # it is no mapping
                    about = tensors.get_slice(name)
                    # Not all dtypes of safetensors are numpy's: those are not even read.
                    if (dtype := about.get_dtype()) not in _TENSOR_DTYPES:
                        raise DamagedArtifactError(f"the weights {shown(name)} are {dtype}")
                    if name in wanted:
                        begin, end = offsets[name]
                        shape = tuple(about.get_shape())
                        part = (start + begin, start + end)
                        found[name] = _tensor(place, name, _TENSOR_DTYPES[dtype], shape, part)
        except SafetensorError as error:
            raise DamagedArtifactError(f"its weights cannot be read: {error}") from error
    if missing := wanted - set(found):
        raise DamagedArtifactError(f"it has no weights {shown(sorted(missing))}")
    return {name: np.require(array, requirements=["C", "W", "A"]) for name, array in found.items()}


def _check_header(file: BinaryIO) -> int:
    """Where the data begin; a list of tensors that is absurdly long is not even decoded."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > MOST_MANIFEST:
        raise DamagedArtifactError(f"its weights cannot be read: a header of {length} bytes")
    return 8 + length


def _offsets(place: Path, start: int) -> dict[str, tuple[int, int]]:
    """Where every tensor lies behind the header, in a file that the library has checked."""
    with place.open("rb") as file:
        header = json.loads(file.read(start)[8:])
    return {
        name: tuple(about["data_offsets"])
        for name, about in header.items()
        if name != "__metadata__"
    }


def _tensor(
    place: Path, name: str, dtype: str, shape: tuple[int, ...], part: tuple[int, int]
) -> NDArray[Any]:
    """A tensor out of a file, where it lies from `part[0]` to `part[1]`."""
    count = math.prod(shape)
    begin, end = part
    if end - begin != count * np.dtype(dtype).itemsize or end > place.stat().st_size:
        raise DamagedArtifactError(f"the weights {shown(name)} are not of their size")
    try:
        return np.fromfile(place, dtype, count, offset=begin).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise DamagedArtifactError(f"the weights {shown(name)} cannot be: {error}") from error


def _check_machine(manifest: Manifest) -> None:
    here = platform.machine()
    if manifest.machine != here:
        raise WrongMachineError(
            f"it is for {manifest.machine[:40]}, and this is {here}: export with another target"
        )
    present = _features()
    missing = [name for name in manifest.features if present and name not in present]
    if missing:
        raise WrongMachineError(
            f"it was compiled for {shown(manifest.target)} and needs {', '.join(missing)[:200]}, "
            "which this processor does not have: export with another target, such as 'avx2'"
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
