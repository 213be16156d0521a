"""Artifacts of some hundred bytes, whole, taken apart and put together again."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import zipfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import numpy as np
from safetensors.numpy import save

from dsgc_runtime.archive import Archive, open_archive
from dsgc_runtime.check import buffer_sizes, check_archive
from dsgc_runtime.errors import ArtifactError
from dsgc_runtime.session import Session

if TYPE_CHECKING:
    from dsgc_runtime.native import Native

__all__ = [
    "MACHINE",
    "Parts",
    "no_kernels",
    "outcome",
    "smallest",
    "taken_apart",
    "zipped",
    "zipped_text",
]

MACHINE = "x86_64"  # that artifacts here are for, and that they are checked on
MEMBERS = ("graph.txt", "kernels.so", "weights.safetensors")
_MOST_MEMORY = 1 << 20
Manifest = dict[str, Any]
Parts = tuple[Manifest, dict[str, bytes]]


def smallest() -> Parts:
    """A manifest with everything that a manifest can have, and the other members.

    What is called its kernels is no code: it must never be loaded.
    """

    def view(kind: str, storage: int | str, dtype: str, *shape: object) -> dict[str, object]:
        return {kind: storage, "dtype": dtype, "shape": list(shape)}

    manifest = {
        "format": 1,
        "dsgc": "0",
        "target": {"name": "x86-64", "machine": MACHINE, "features": []},
        "batch": {"dynamic": True, "example": 2},
        "inputs": [{"name": "x", **view("buffer", 0, "float32", "batch", 2)}],
        "outputs": [{"name": "y", **view("buffer", 1, "float32", "batch", 2)}],
        "buffers": [
            {"bytes": ["*", "batch", 8], "first": 0, "last": 0},
            {"bytes": ["*", "batch", 8], "first": 2, "last": 3},
            {"bytes": ["*", ["+", "batch", 1], 4], "first": 0, "last": 2},
            {"bytes": ["*", ["ceil", "batch", 2], 16], "first": 2, "last": 2},
        ],
        "program": [
            {
                "kernel": "count",
                "layer": "a",
                "arguments": [
                    view("buffer", 0, "float32", "batch", 2),
                    view("constant", "w", "float32", 2),
                    view("buffer", 2, "int32", ["+", "batch", 1]),
                    {"int": ["*", "batch", 3]},
                    {"float": "-inf"},
                ],
            },
            {
                "read": "n",
                "layer": "a",
                "arguments": [view("buffer", 2, "int32", ["+", "batch", 1])],
                "most": ["*", "batch", 2],
            },
            {
                "kernel": "fill",
                "layer": "b",
                "arguments": [
                    view("buffer", 3, "float32", "n"),
                    view("buffer", 1, "float32", "batch", 2),
                ],
            },
        ],
        "layers": [
            {"name": "a", "sparse": True, "reason": "", "sparsity": 0.5, "multiply_adds": 4}
        ],
    }
    weights = save({"w": np.zeros(2, np.float32)})
    return manifest, {"graph.txt": b"g", "kernels.so": b"k", "weights.safetensors": weights}


def zipped(manifest: Manifest, members: dict[str, bytes], *, hashes: bool = True) -> bytes:
    """The file; with the hashes of its members in the manifest unless that is not wanted."""
    if hashes:
        files = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in members.items()
        }
        manifest = {**manifest, "files": files}
    return zipped_text(json.dumps(manifest, separators=(",", ":")).encode(), members)


def zipped_text(text: bytes, members: dict[str, bytes]) -> bytes:
    """The file with this text for a manifest."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.comment = hashlib.sha256(text).hexdigest().encode()
        for name, data in {"manifest.json": text, **members}.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return held.getvalue()


def taken_apart(data: bytes) -> Parts | None:
    """The manifest and the other members; None if that is not what the bytes are."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            manifest = json.loads(archive.read("manifest.json"))
            members = {name: archive.read(name) for name in MEMBERS}
    except Exception:  # whatever mutation has made of it
        return None
    return (manifest, members) if isinstance(manifest, dict) else None


def outcome(path: Path) -> tuple[str, str]:
    """("ok", ""), or the type and text of the ArtifactError that loading ends in.

    All is done that is done before code is loaded, and calls are made ready, with no code to call.
    Whatever else is raised is a finding.
    """
    with mock.patch.object(platform, "machine", return_value=MACHINE):
        try:
            archive = open_archive(path)
            check_archive(archive)
            for batch in (1, 7):
                _make_ready(archive, batch)
        except ArtifactError as error:
            return type(error).__name__, str(error)
    return "ok", ""


def _make_ready(archive: Archive, batch: int) -> None:
    sizes = buffer_sizes(archive.manifest, archive.constants, batch)
    if sum(sizes) <= _MOST_MEMORY:
        Session(archive.manifest, archive.constants, no_kernels(), batch)


def no_kernels() -> Native:
    """Kernels of any name, which do nothing."""
    kernels: dict[str, object] = defaultdict(lambda: lambda *_: None)
    return cast("Native", SimpleNamespace(wrap=lambda array: array, kernels=kernels))
