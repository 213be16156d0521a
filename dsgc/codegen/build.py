"""Compiles a family of kernels with TVM, through the disk cache."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dsgc.codegen.cache import KernelCache, content_key
from dsgc.codegen.families import Family
from dsgc.codegen.target import CpuTarget, host_target
from dsgc.errors import KernelError

__all__ = [
    "build_library",
    "build_object",
    "compile_family",
    "compile_functions",
    "kernels_key",
    "known_host_target",
    "write_object",
]


def compile_family(family: Family, target: CpuTarget) -> Any:
    """The family compiled for ``target``: a ``tvm.runtime.Executable``.

    ``compile_family(...).mod.inspect_source("asm")`` shows the machine code.
    """
    return compile_functions(family.functions(target), target)


def compile_functions(made: Sequence[Any], target: CpuTarget) -> Any:
    """TVMScript functions compiled for ``target``: a ``tvm.runtime.Executable``."""
    # TVM would otherwise pin the calling thread to a core the first time its own pool starts.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm

    functions = {f.attrs["global_symbol"]: f for f in made}
    return tvm.compile(tvm.IRModule(functions), target=target.tvm())


def write_object(family: Family, target: CpuTarget, path: Path) -> None:
    """Writes the family as an object file, also for a CPU that is not this machine's."""
    compile_family(family, target).mod.write_to_file(str(path))


def build_library(family: Family, cache: KernelCache, target: CpuTarget | None = None) -> Path:
    """Path of the family's shared object, compiled if the cache does not hold it.

    It is linked of the object file that `build_object` gives, which artifacts take as well.

    Args:
        family: what to compile.
        cache: where to look and to keep it.
        target: the CPU; None is this machine's.

    Raises:
        KernelError: if it cannot be compiled or written.
    """

    def build(path: Path) -> None:
        _require_linker()
        from tvm.support.cc import create_shared

        create_shared(str(path), [str(build_object(family, cache, target))])

    return cache.get(kernels_key(family.name, target, family.files), build)


def _require_linker() -> None:
    """TVM, which links with a C++ compiler, does not say so where there is none."""
    from tvm.support.cc import get_cc

    if get_cc() is None:
        raise KernelError(
            "generated kernels are linked by a C++ compiler, and none was found: install g++ "
            "(Debian: apt-get install g++), or name one in the environment variable CXX"
        )


def build_object(family: Family, cache: KernelCache, target: CpuTarget | None = None) -> Path:
    """Path of the family's object file, to be linked with others; otherwise as `build_library`."""
    key = kernels_key(f"{family.name}.o", target, family.files)
    return cache.get(
        key, lambda path: write_object(family, target or host_target(), path), "kernels.o"
    )


def known_host_target(cache: KernelCache) -> CpuTarget:
    """:func:`host_target`, from the disk cache if it is there: TVM, which finds it, takes seconds
    and 200 MB to import.

    Raises:
        KernelError: if it can neither be found nor written.
    """

    def note(path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(host_target())), encoding="utf-8")

    noted = cache.get(kernels_key("host"), note, "target.json").read_text(encoding="utf-8")
    fields = json.loads(noted)
    pairs = [(k, tuple(v) if isinstance(v, list) else v) for k, v in fields.pop("options")]
    return CpuTarget(**fields, options=tuple(pairs))


def kernels_key(name: str, target: CpuTarget | None = None, files: tuple[Path, ...] = ()) -> str:
    """``name`` with a hash of all that generated code depends on; ``target`` None is this CPU.

    ``files`` are sources besides those of dsgc.
    """
    cpu = _host_identity() if target is None else repr(target)
    written = [path.read_text(encoding="utf-8") for path in files]
    return content_key(name, _sources(), _versions(), cpu, *written)


@functools.cache
def _sources() -> str:
    """What all generated code depends on: the templates themselves."""
    here = Path(__file__).parent
    files = sorted(
        [*here.glob("kernels/*.py"), here / "families.py", here / "target.py", here / "tiles.py"]
    )
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


@functools.cache
def _versions() -> str:
    return " ".join(metadata.version(name) for name in ("apache-tvm", "apache-tvm-ffi"))


@functools.cache
def _host_identity() -> str:
    """The CPU's model and feature flags, read without importing TVM (which takes seconds)."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join(platform.uname())
    wanted = ("model name", "cpu family", "model", "flags", "Features", "CPU part")
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return platform.machine() + "".join(
        f"{key.strip()}={value.strip()};" for key, value in found.items() if key.strip() in wanted
    )
