"""The same templates for every CPU: what the machine code holds, and objects for other CPUs."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from dsgc.codegen import families
from dsgc.codegen.build import compile_family, write_object
from dsgc.codegen.families import Family
from dsgc.codegen.target import NAMED_TARGETS, host_target, named_target

FAMILIES: dict[str, Callable[[], Family]] = {
    "lists": families.lists,
    "blocked": lambda: families.blocked(16),
    "neurons": lambda: families.blocked(1),
    "convolution": lambda: families.convolution(16, 16),
    "dense": lambda: families.dense(16),
    "neuron": families.neuron,
}
ELF_MACHINE = {"avx512": 62, "avx2": 62, "x86-64": 62, "aarch64": 183}


@pytest.mark.parametrize("target", NAMED_TARGETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compiles_to_an_object(family: str, target: str, tmp_path: Path) -> None:
    path = tmp_path / "kernels.o"
    write_object(FAMILIES[family](), named_target(target), path)
    header = path.read_bytes()[:20]
    assert header[:4] == b"\x7fELF"
    assert int.from_bytes(header[18:20], "little") == ELF_MACHINE[target]


@pytest.mark.parametrize(
    ("target", "multiply_add"),
    [
        ("avx512", r"vfmadd\w+ps\s+\S*\(.*zmm"),
        ("avx2", r"vfmadd\w+ps\s+\S*\(.*ymm"),
        ("x86-64", r"mulps\s.*xmm"),
        ("aarch64", r"fmla\s+v\d+\.4s"),
    ],
)
def test_the_convolution_multiplies_whole_vectors(target: str, multiply_add: str) -> None:
    executable = compile_family(families.convolution(16, 16), named_target(target))
    assert re.search(multiply_add, executable.mod.inspect_source("asm"))


def test_inner_loops_keep_their_sums_in_registers() -> None:
    asm = compile_family(families.convolution(16, 16), named_target("avx512")).mod
    loops = re.split(r"^\.LBB\S*:", asm.inspect_source("asm"), flags=re.MULTILINE)
    inner = [loop for loop in loops if loop.count("vfmadd") >= 16]
    assert inner
    # 16 multiply-adds on one 16 x 16 block; sums are not stored between them.
    forward = [loop for loop in inner if not re.search(r"vmovups\s+%zmm\d+, \S*\(", loop)]
    assert forward


def test_the_host_is_known_by_its_features() -> None:
    target = host_target()
    assert dict(target.options)["mcpu"] not in ("", "generic", "native")
    assert target.tvm().kind.name == "llvm"


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pentium.*aarch64"):
        named_target("pentium")
