"""What this machine offers to dsgc, what is missing, and the command that mends it."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from dsgc.bench.machine import describe_machine

__all__ = ["Finding", "examine"]

_NEEDED = ("torch", "apache-tvm", "apache-tvm-ffi", "numpy", "safetensors")
_OPTIONAL = {"onnxruntime": "bench", "matplotlib": "bench", "scikit-learn": "demo"}
_GOMP = "libgomp.so.1"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of the thing.
        state: "ok", "note" (works, but could be better) or "missing".
        said: what was found.
        remedy: a command or setting; empty where there is nothing to mend.
    """

    name: str
    state: str
    said: str
    remedy: str = ""

    def json(self) -> dict[str, str]:
        """As plain data."""
        return asdict(self)


def examine() -> list[Finding]:
    """Everything, in the order in which it is needed."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _packages,
        _processor,
        _threads,
        _compiler,
        _openmp,
        _cache,
    )
    return [finding for check in checks for finding in check()]


def _packages() -> Iterator[Finding]:
    for name in ("dsgc", *_NEEDED):
        try:
            yield Finding(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(name, "missing", "not installed", f"pip install {name}")
    for name, extra in _OPTIONAL.items():
        try:
            yield Finding(name, "ok", metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Finding(
                name,
                "note",
                f"not installed; `dsgc {extra}` uses it",
                f"pip install 'dsgc[{extra}]'",
            )


def _processor() -> Iterator[Finding]:
    machine: dict[str, Any] = describe_machine()
    features = machine["features"]
    said = f"{machine['cpu']}: {', '.join(features) or machine['architecture']}"
    wide = {"avx2", "avx512f", "neon"} & set(features)
    yield Finding("processor", "ok" if wide else "note", said)
    if "avx512f" in features and "avx512_vnni" not in features:
        yield Finding("8-bit dot products", "note", "not there: the search runs on 32-bit numbers")


def _threads() -> Iterator[Finding]:
    usable = describe_machine()["usable_cores"]
    asked = os.environ.get("OMP_NUM_THREADS")
    if asked is None:
        yield Finding("threads", "ok", f"{usable} cores may be used")
        return
    fits = asked.isdigit() and int(asked) <= (usable or 1)
    remedy = "" if fits else f"export OMP_NUM_THREADS={usable}"
    said = f"OMP_NUM_THREADS={asked}, {usable} cores may be used"
    yield Finding("threads", "ok" if fits else "note", said, remedy)


def _compiler() -> Iterator[Finding]:
    import dsgc_runtime

    try:
        yield Finding("C compiler", "ok", dsgc_runtime.compiler_command())
    except dsgc_runtime.RuntimeBuildError as error:
        yield Finding("C compiler", "missing", str(error), "apt-get install gcc g++")


def _openmp() -> Iterator[Finding]:
    try:
        ctypes.CDLL(_GOMP)
    except OSError as error:
        yield Finding("OpenMP", "missing", str(error), "apt-get install libgomp1")
    else:
        yield Finding("OpenMP", "ok", _GOMP)


def _cache() -> Iterator[Finding]:
    from dsgc.codegen.cache import default_directory

    place = default_directory()
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        remedy = "export DSGC_CACHE=/a/directory/that/can/be/written"
        yield Finding("kernel cache", "missing", f"{place} cannot be written: {error}", remedy)
        return
    sizes = [file.stat().st_size for file in Path(place).rglob("*") if file.is_file()]
    said = f"{place}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB"
    yield Finding("kernel cache", "ok", said)
