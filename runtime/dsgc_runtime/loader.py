"""Builds the OpenMP shim once and loads kernel libraries on top of it."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import tvm_ffi
from tvm_ffi.libinfo import find_include_path, find_libtvm_ffi

from dsgc_runtime.errors import RuntimeBuildError

_SOURCES = tuple(Path(__file__).with_name(name) for name in ("openmp_shim.c", "memory_pool.c"))


def compiler_command() -> str:
    """Path of the C compiler: ``$CC`` if set, else gcc, clang or cc.

    Raises:
        RuntimeBuildError: if there is none.
    """
    for name in (os.environ.get("CC"), "gcc", "clang", "cc"):
        found = shutil.which(name) if name else None
        if found:
            return found
    raise RuntimeBuildError(
        "no C compiler found, and generated kernels need one to be linked; install gcc or clang "
        "(Debian: apt-get install gcc g++), or point the environment variable CC at one"
    )


def shim_path(directory: Path) -> Path:
    """The compiled OpenMP shim below ``directory``, built there if it is not yet.

    The name carries a hash of the source and of the tvm-ffi library it links to. Two processes may
    build at the same time: each writes a file of its own and renames it.

    Raises:
        RuntimeBuildError: if it cannot be compiled.
    """
    library = Path(find_libtvm_ffi())
    key = hashlib.sha256(
        b"".join(source.read_bytes() for source in _SOURCES)
        + tvm_ffi.__version__.encode()
        + str(library).encode()
    ).hexdigest()[:16]
    target = directory / f"libdsgc_openmp-{key}.so"
    if not target.exists():
        _compile_shim(target, library)
    return target


def shim_build_arguments() -> list[str]:
    """The compiler's arguments that put the OpenMP shim into another shared object."""
    return [str(_SOURCES[0]), f"-I{find_include_path()}", f"-I{_dlpack_include()}"]


def _compile_shim(target: Path, library: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        command = [
            compiler_command(),
            *("-O2", "-shared", "-fPIC", "-fopenmp", "-pthread", "-Wl,-Bsymbolic"),
            *(str(source) for source in _SOURCES),
            *(f"-I{find_include_path()}", f"-I{_dlpack_include()}"),
            *(f"-L{library.parent}", "-ltvm_ffi", f"-Wl,-rpath,{library.parent}"),
            *("-o", str(built)),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise RuntimeBuildError(
                f"the OpenMP runtime could not be compiled by {command[0]}: {result.stderr.strip()}"
            )
        built.replace(target)


def _dlpack_include() -> str:
    from tvm_ffi.libinfo import find_dlpack_include_path

    return str(find_dlpack_include_path())


@functools.cache
def _shim(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))


def load_shim(directory: Path) -> ctypes.CDLL:
    """The compiled shim below ``directory``, built and loaded if need be.

    Raises:
        RuntimeBuildError: if it cannot be compiled.
    """
    return _shim(shim_path(directory))


def load_kernels(library: Path, shim_directory: Path) -> Any:
    """Loads a generated kernel library; its functions are the attributes of what comes back
    (``module["name"]``).

    Args:
        library: a shared object written by dsgc's code generator. It holds native code: load only
            what you trust.
        shim_directory: where the compiled OpenMP shim is kept.

    Raises:
        RuntimeBuildError: if the OpenMP shim is missing and cannot be built.
    """
    load_shim(shim_directory).dsgc_register_runtime()
    return tvm_ffi.load_module(str(library.resolve()))
