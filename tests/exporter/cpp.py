"""Builds the C++ runtime for tests, and makes artifacts by hand for it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save
from tvm_ffi.libinfo import find_dlpack_include_path, find_include_path, find_libtvm_ffi

import dsgc_runtime

__all__ = [
    "Loader",
    "Programs",
    "build_arm",
    "build_native",
    "hand_made",
    "kernels",
    "shared",
    "tool",
]

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "runtime" / "cpp"
# What the runtime says of kernels that are no native code, which it looks at last of all.
PASSED = "its kernels.so is no shared object"
# Those of undefined behaviour that numbers out of files can lead to; all take twice as long.
SANITIZERS = "address,alignment,bounds,float-cast-overflow,shift,signed-integer-overflow"
# Sanitizers stop a program with a code of their own; they are asked for memory that is not there.
SANITIZED = {
    "ASAN_OPTIONS": "exitcode=99:allocator_may_return_null=1:verify_asan_link_order=0",
    "UBSAN_OPTIONS": "exitcode=99:print_stacktrace=1",
}


@dataclass(frozen=True)
class Programs:
    """What a build made.

    Attributes:
        library: libdsgc_runtime.so.
        example: the example program.
        tests: the directory with the programs of runtime/cpp/tests; None if they were not built.
        emulator: what stands before a command that runs them.
    """

    library: Path
    example: Path
    tests: Path | None = None
    emulator: tuple[str, ...] = ()

    def run(self, *arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """The example program with these arguments; it must end with the code `expect`."""
        return self._run(self.example, *arguments, expect=expect)

    def check(
        self, what: str, *arguments: object, given: str | None = None, program: str = "dsgc_checks"
    ) -> list[str]:
        """The lines that a program of the tests prints."""
        assert self.tests is not None
        done = self._run(self.tests / program, what, *arguments, expect=0, given=given)
        return done.stdout.splitlines()

    def _run(
        self, *command: object, expect: int, given: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self.emulator, *(str(part) for part in command)],
            input=given,
            env=os.environ | SANITIZED,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
        return done


class Loader:
    """A process that loads artifacts, and says what came of it; it must survive all of them.

    Args:
        what: "load", or "symbols" for shared objects whose symbols are looked at.
    """

    def __init__(self, programs: Programs, what: str = "load") -> None:
        assert programs.tests is not None
        self._process = subprocess.Popen(
            [programs.tests / "dsgc_checks", what],
            env=os.environ | SANITIZED,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        said = self._process.communicate(timeout=60)[1]
        assert self._process.returncode == 0, said

    def load(self, path: Path) -> str:
        """What it says of a file: "loaded", or the type and text of the error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        said = self._process.stdout.readline().rstrip("\n").replace(f"{path}: ", "")
        assert said, f"{path} ended it: {self._process.communicate()[1]}"
        return said


def tool(name: str) -> str:
    """The path of a program that the tests need."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is missing: {_remedy()}")
    return found


def _remedy() -> str:
    packages = (ROOT / ".ci" / "packages").read_text(encoding="utf-8").split()
    return f"the C++ runtime's tests need it (apt-get install {' '.join(packages)})"


def _cmake(*arguments: object) -> None:
    command = [tool("cmake"), *(str(one) for one in arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}\n{_remedy()}")


def _build(source: Path, folder: Path, *options: str) -> None:
    tool("make")
    _cmake("-S", source, "-B", folder, "-G", "Unix Makefiles", "-DCMAKE_BUILD_TYPE=None", *options)
    _cmake("--build", folder, "--parallel", "2")


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[tuple[Path, bool]]:
    """A folder that all workers of a test run share, and whether it is still to be filled.

    One worker fills it while the others wait.
    """
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = folder / "done"
        yield folder, not done.exists()
        done.touch()


def build_native(folder: Path, fresh: bool) -> Programs:
    """The library, its installation, and the example that finds it there; with sanitizers."""
    build, prefix, example = (folder / name for name in ("build", "prefix", "example"))
    flags = f"-DCMAKE_CXX_FLAGS=-Werror -fsanitize={SANITIZERS} -fno-sanitize-recover=all"
    includes = f"{find_include_path()};{find_dlpack_include_path()}"
    if fresh:
        tests = ("-DDSGC_RUNTIME_TESTS=ON", f"-DTVM_FFI_INCLUDES={includes}")
        ffi = f"-DTVM_FFI_LIBRARY={find_libtvm_ffi()}"
        _build(SOURCES, build, flags, *tests, ffi, "-DCMAKE_INSTALL_LIBDIR=lib")
        _cmake("--install", build, "--prefix", prefix)
        _build(SOURCES / "example", example, flags, f"-DCMAKE_PREFIX_PATH={prefix}")
    library = prefix / "lib" / "libdsgc_runtime.so"
    return Programs(library, example / "dsgc_run", build / "tests")


def build_arm(folder: Path, fresh: bool) -> Programs:
    """The library and its example for 64-bit ARM, and the emulator that runs them."""
    tool("aarch64-linux-gnu-g++")
    if fresh:
        chain = f"-DCMAKE_TOOLCHAIN_FILE={SOURCES / 'cmake' / 'aarch64-linux-gnu.cmake'}"
        flags = "-DCMAKE_CXX_FLAGS=-Werror"
        _build(SOURCES, folder, chain, flags, "-DDSGC_RUNTIME_EXAMPLE=ON")
    emulator = (tool("qemu-aarch64"), "-L", "/usr/aarch64-linux-gnu")
    example = folder / "example" / "dsgc_run"
    return Programs(folder / "libdsgc_runtime.so", example, emulator=emulator)


def kernels(folder: Path) -> bytes:
    """The kernel library of runtime/cpp/tests/kernels.c."""
    made = folder / "kernels.so"
    command = [
        *(dsgc_runtime.compiler_command(), "-O1", "-shared", "-fPIC", "-fopenmp"),
        *("-Wl,-Bsymbolic", "-Wall", "-Wextra", "-Werror"),
        *(str(SOURCES / "tests" / "kernels.c"), *dsgc_runtime.shim_build_arguments()),
        *("-o", str(made)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made.read_bytes()


def replace(manifest: dict[str, Any], members: dict[str, bytes], name: str, data: bytes) -> None:
    """Another member of an artifact, as if it had been written so."""
    members[name] = data
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def hand_made(
    place: Path,
    library: bytes,
    program: Sequence[Mapping[str, Any]],
    buffers: Sequence[object] = (),
    constants: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """An artifact with one input and one output [batch, 4], buffers 0 and 1.

    Args:
        place: the file.
        library: its kernels.
        program: instructions; "layer" need not be given.
        buffers: bytes of further buffers, alive all the time.
        constants: by name.
    """
    members = {
        "graph.txt": b"a graph\n",
        "kernels.so": library,
        "weights.safetensors": save(dict(constants or {"none": np.zeros(1, np.float32)})),
    }
    sizes = [["*", "batch", 16], ["*", "batch", 16], *buffers]
    outside = {"dtype": "float32", "shape": ["batch", 4]}
    manifest = {
        "format": 1,
        "dsgc": "0",
        "target": {"name": "here", "machine": platform.machine(), "features": []},
        "batch": {"dynamic": True, "example": 2},
        "inputs": [{"name": "x", "buffer": 0, **outside}],
        "outputs": [{"name": "y", "buffer": 1, **outside}],
        "buffers": [{"bytes": size, "first": 0, "last": len(program)} for size in sizes],
        "program": [{"layer": "hand", **step} for step in program],
        "layers": [],
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in members.items()
        },
    }
    text = json.dumps(manifest).encode()
    with zipfile.ZipFile(place, "w") as archive:
        archive.comment = hashlib.sha256(text).hexdigest().encode()
        for name, data in {"manifest.json": text, **members}.items():
            archive.writestr(name, data)
    return place
