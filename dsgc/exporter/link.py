"""Compiles the kernels that a program calls, and their threads, into one shared object."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

import dsgc_runtime
from dsgc.codegen.build import build_object
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.families import Family
from dsgc.codegen.target import CpuTarget, host_target
from dsgc.errors import KernelError

__all__ = ["link_kernels", "required_features"]

# What runtimes look for in a processor before they run anything; other features follow from these.
_TELLING = {
    "sse42", "avx", "avx2", "fma", "f16c", "bmi1", "bmi2", "avx512f", "avx512bw", "avx512cd",
    "avx512dq", "avx512vl", "avx512vnni", "avx512bf16", "avx512fp16", "avx512ifma", "avx512vbmi",
    "avx512vbmi2", "avx512bitalg", "avx512vpopcntdq", "avxvnni", "gfni", "vaes", "vpclmulqdq",
}  # fmt: skip
_LLVM_NAMES = {"bmi": "bmi1"}
_CROSS_COMPILERS = {"aarch64": "aarch64-linux-gnu-gcc"}


def machine_of(target: CpuTarget) -> str:
    """The architecture as `platform.machine()` names it."""
    triple = dict(target.options).get("mtriple")
    if isinstance(triple, str):
        return triple.partition("-")[0]
    import platform

    return platform.machine()


def required_features(target: CpuTarget) -> list[str]:
    """The processor features that code for `target` may use, as `/proc/cpuinfo` names them.

    Without underscores: there they are written in more than one way.
    """
    if machine_of(target) == "aarch64":
        return ["asimd"]
    from tvm.target import codegen as llvm

    found = {str(name).replace(".", "") for name in llvm.llvm_get_cpu_features(target.tvm())}
    named = {_LLVM_NAMES.get(name, name) for name in found}
    return sorted(named & _TELLING)


def link_kernels(families: Iterable[Family], target: CpuTarget | None, path: Path) -> None:
    """Write the kernels of `families` as the shared object `path`.

    Args:
        target: the CPU; None is this machine's.

    Raises:
        KernelError: no compiler for the target, or it failed.
    """
    cache = KernelCache()
    by_name = {family.name: family for family in families}
    compiler = compiler_for(target or host_target())
    objects = [str(build_object(by_name[name], cache, target)) for name in sorted(by_name)]
    command = [
        compiler,
        *("-O2", "-shared", "-fPIC", "-fopenmp", "-s", "-Wl,-Bsymbolic", "-Wl,--build-id=none"),
        *objects,
        *dsgc_runtime.shim_build_arguments(),
        *("-lm", "-o", path.name),  # kernels round with it where the processor cannot
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=path.parent)
    if done.returncode != 0:
        raise KernelError(f"the kernels could not be linked by {compiler}: {done.stderr.strip()}")


def compiler_for(target: CpuTarget) -> str:
    """The C compiler that links for `target`."""
    import platform
    import shutil

    machine = machine_of(target)
    if machine == platform.machine():
        try:
            return dsgc_runtime.compiler_command()
        except dsgc_runtime.RuntimeBuildError as error:
            raise KernelError(str(error)) from error
    wanted = os.environ.get("DSGC_CROSS_CC") or _CROSS_COMPILERS.get(machine, "")
    found = shutil.which(wanted) if wanted else None
    if found is None:
        raise KernelError(
            f"no C compiler that links for {machine}: install {wanted or 'one'} (Debian: apt-get "
            f"install gcc-{machine}-linux-gnu), or name one in the environment variable "
            "DSGC_CROSS_CC"
        )
    return found
