"""The same templates for every CPU: what the machine code holds, and objects for other CPUs."""

import dataclasses
import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dsgc.ops  # noqa: F401 - defines the operators
from dsgc.codegen import families
from dsgc.codegen.build import compile_family, write_object
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.convolution import conv2d
from dsgc.codegen.cpu.convolution_backward import conv2d_backward
from dsgc.codegen.cpu.selection import drs_scores
from dsgc.codegen.families import Family
from dsgc.codegen.target import CpuTarget, host_target, named_target
from dsgc.errors import ConfigError
from dsgc.ops import mask_to_selection

FAMILIES: dict[str, Callable[[], Family]] = {
    "lists": families.lists,
    "blocked": lambda: families.blocked(16),
    "neurons": lambda: families.blocked(1),
    "convolution": lambda: families.convolution(16, 16),
    "dense": lambda: families.dense(16),
    "convolution in place": lambda: families.convolution_in_place(16, 16),
    "dense in place": lambda: families.dense_in_place(16),
    "neuron": families.neuron,
    "search": families.dense_search,
    "linear": lambda: families.linear(16),
    "plain convolution": families.plain_convolution,
}
ELF_MACHINE = {"x86-64": 62, "aarch64": 183}


def _objects() -> list[tuple[str, str]]:
    """All families for the architecture that is not this machine's; of its own targets kernels are
    run below, and one family is missing there.
    """
    here = "aarch64" if platform.machine() == "aarch64" else "x86-64"
    (other,) = ELF_MACHINE.keys() - {here}
    return [*((family, other) for family in FAMILIES), ("plain convolution", here)]


@pytest.mark.parametrize(("family", "target"), _objects())
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


def test_the_search_adds_bytes_where_the_machine_can() -> None:
    asm = compile_family(families.blocked(16), named_target("avx512-vnni")).mod
    loops = re.split(r"^\.LBB\S*:", asm.inspect_source("asm"), flags=re.MULTILINE)
    # A register tile is 6 positions by 64 channels: 24 sums, none of them stored in the loop.
    inner = [loop for loop in loops if loop.count("vpdpbusd") >= 24]
    assert inner
    assert not any(re.search(r"vmovdq\w+\s+%zmm\d+, \S*\(", loop) for loop in inner)


def test_the_host_is_known_by_its_features() -> None:
    target = host_target()
    assert dict(target.options)["mcpu"] not in ("", "generic", "native")
    assert target.tvm().kind.name == "llvm"


@pytest.mark.parametrize(
    "wrong", [{"lanes": 32}, {"members": 0}, {"score_members": 3}, {"score_columns": 48}], ids=str
)
def test_a_target_that_kernels_cannot_be_cut_to_is_refused(wrong: dict[str, int]) -> None:
    (field,) = wrong
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(named_target("avx2"), **wrong)  # type: ignore[arg-type]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pentium.*aarch64"):
        named_target("pentium")


def _runnable() -> list[str]:
    """Targets of this machine's architecture whose vectors it has, but for the one that all other
    tests run kernels for, the machine itself.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return ["aarch64"]
    here = host_target()
    found = [named_target(name) for name in ("avx512", "avx2", "x86-64")]
    return [one.name for one in found if one.lanes < here.lanes or _only_searches(one)]


def _only_searches(target: CpuTarget) -> bool:
    """Whether a target has this machine's vectors, but no products of bytes."""
    here = host_target()
    return target.lanes == here.lanes and here.byte_dots and not target.byte_dots


NARROWER = [name for name in _runnable() if not _only_searches(named_target(name))]


def _check_layer(
    libraries: Libraries,
    source: tuple[Any, ...],
    weight: torch.Tensor,
    bias: torch.Tensor,
    how: tuple[Any, ...],
) -> None:
    """A convolution and its gradients against their meaning; `how` is what follows the bias."""
    forward = (*source, weight, bias, *how)
    y = torch.ops.dsgc.conv2d(*forward)
    torch.testing.assert_close(conv2d(libraries, *forward), y, rtol=1e-4, atol=1e-4)
    backward = (y, *source, weight, *how, True, True, True)
    found, meant = conv2d_backward(libraries, *backward), torch.ops.dsgc.conv2d_backward(*backward)
    for one, other in zip(found, meant, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2)


def _cases() -> list[tuple[str, tuple[int | None, int]]]:
    """AVX2 in all block sizes, others in those that differ most: compiling takes seconds each."""
    few: list[tuple[int | None, int]] = [(16, 16), (1, 1)]
    every = [*few, (8, 32), (None, 16), (None, 8)]
    return [
        (name, blocks)
        for name in _runnable()
        for blocks in (every if name == "avx2" else few if name in NARROWER else few[:1])
    ]


@pytest.mark.parametrize(("target", "blocks"), _cases())
def test_narrower_vectors_give_the_same_results(
    target: str, blocks: tuple[int | None, int]
) -> None:
    libraries = Libraries(KernelCache(), named_target(target))
    bi, bo = blocks
    size, outputs, geometry = [40, 9, 7], 72, ([2, 1], [1, 1], [1, 1])
    x = torch.randn(2, *size)
    chosen: tuple[torch.Tensor, torch.Tensor] | tuple[None, None] = (None, None)
    if bi is not None:
        flags = torch.rand(2, -(-40 // bi), 9, 7) < 0.5
        index, rowptr = mask_to_selection(flags, bits=bi == 1)
        x, chosen = torch.ops.dsgc.pack(x, index, rowptr, bi), (index, rowptr)
    weight, bias = torch.randn(outputs, 40, 3, 3), torch.randn(outputs)
    source = (x, *chosen, torch.rand(40), torch.randn(40), "affine_relu", size)
    target_mask = torch.rand(2, -(-outputs // bo), 5, 7) < 0.5
    wanted = mask_to_selection(target_mask, bits=bo == 1)
    _check_layer(libraries, source, weight, bias, (*wanted, bo, *geometry))
    projection = torch.randint(-1, 2, (40, 16)).to(torch.int8)
    projected, unit = torch.zeros(9, 16, 128, dtype=torch.int8), torch.zeros(128)
    projected[..., :outputs] = torch.randint(-127, 128, (9, 16, outputs)).to(torch.int8)
    unit[:outputs] = torch.rand(outputs)
    searched = (*source, projection, projected, unit, bias, outputs, bo, [3, 3], *geometry)
    meant_scores = torch.ops.dsgc.drs_scores(*searched)
    torch.testing.assert_close(drs_scores(libraries, *searched), meant_scores, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("target", NARROWER)
@pytest.mark.parametrize("block", [None, 16])
def test_weights_in_place_give_the_same_results(target: str, block: int | None) -> None:
    libraries = Libraries(KernelCache(), named_target(target))
    size, outputs = [64, 5, 6], 48
    x = torch.randn(2, *size)
    chosen: tuple[torch.Tensor, torch.Tensor] | tuple[None, None] = (None, None)
    if block is not None:
        chosen = mask_to_selection(torch.rand(2, 64 // block, 5, 6) < 0.3, bits=False)
        x = torch.ops.dsgc.pack(x, *chosen, block)
    weight = torch.randn(outputs, 64, 3, 3).contiguous(memory_format=torch.channels_last)
    wanted = mask_to_selection(torch.rand(2, outputs // 16, 5, 6) < 0.5, bits=False)
    source = (x, *chosen, torch.rand(64), torch.randn(64), "affine_relu", size)
    how = (*wanted, 16, [1, 1], [1, 1], [1, 1])
    _check_layer(libraries, source, weight, torch.randn(outputs), how)


@pytest.mark.parametrize("target", NARROWER)
@pytest.mark.parametrize("block", [1, 8, 16, 32])
def test_linear_layers_of_few_rows_give_the_same_results(target: str, block: int) -> None:
    libraries = Libraries(KernelCache(), named_target(target))
    geometry = ([1, 1], [0, 0], [1, 1])
    source = (torch.randn(7, 80, 1, 1), None, None, None, None, "relu", [80, 1, 1])
    weight, bias = torch.randn(64, 80, 1, 1), torch.randn(64)
    wanted = mask_to_selection(torch.rand(7, 64 // block, 1, 1) < 0.6, bits=block == 1)
    _check_layer(libraries, source, weight, bias, (*wanted, block, *geometry))
