"""What kernels are made of, as text, and which of them an operator calls."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from dsgc.codegen import cpu_kernels, families
from dsgc.codegen.build import kernels_key
from dsgc.codegen.sources import LANGUAGES, KernelLog, kernel_source
from dsgc.codegen.target import named_target
from dsgc.config import BLOCKS
from dsgc.errors import ConfigError
from dsgc.ops import mask_to_selection

AVX2 = named_target("avx2")
FAMILIES = (
    families.lists(), families.dense_search(), families.plain_convolution(), families.maps(),
    families.neuron(), families.rows(), families.elementwise(), families.skipping(),
    families.grouped_convolution(), families.moves(), families.norms(),
    families.dense(16), families.linear(8), families.blocked(1), families.blocked(16),
    families.convolution(8, 16), families.convolution(1, 32), families.convolution(16, 1),
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_kernel_is_found_by_its_name(family: families.Family) -> None:
    together = kernel_source(family.name, "tvmscript", AVX2)
    names = re.findall(r"^def (\w+)\(", together, re.MULTILINE)
    assert len(names) == together.count("@T.prim_func") > 0
    for name in names:
        alone = kernel_source(name, target=AVX2)
        assert f"def {name}(" in alone
        assert alone in together


@pytest.mark.parametrize("target", ["avx2", "aarch64"])
@pytest.mark.parametrize(
    "name",
    [
        *("activate_16", "row_bytes", "rank_winners_128", "block_weights_16_1", "softmax"),
        *("packed_convolution_16_16_in_place", "dense_convolution_16_in_place"),
    ],
)
def test_compiled_forms_hold_the_kernel_and_nothing_else(name: str, target: str) -> None:
    cpu = named_target(target)
    asm = kernel_source(name, "asm", cpu)
    assert re.search(rf"^{name}_compute_:$", asm, re.MULTILINE)
    assert re.search(r"^\tret", asm, re.MULTILINE)
    assert not re.search(r"debug|\.cfi|\.loc\b|TypeError|__tvm_ffi", asm)
    llvm = kernel_source(name, "llvm", cpu)
    assert f"@{name}_compute_(" in llvm
    assert llvm.count("\n}\n") == len(re.findall(r"^define ", llvm, re.MULTILINE)) > 0
    assert not re.search(r"!dbg|#dbg|__tvm_ffi", llvm)


def test_a_target_is_seen_in_the_code() -> None:
    for target, multiply in (("avx512", r"vfmadd.*zmm"), ("avx2", r"vfmadd.*ymm")):
        asm = kernel_source("packed_convolution_16_16", "asm", named_target(target))
        assert re.search(multiply, asm)


@pytest.mark.parametrize("name", ["", "conv2d", "activate", "activate_24", "convolution_16_16_16"])
def test_an_unknown_kernel_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="KernelLog"):
        kernel_source(name, target=AVX2)


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(ConfigError, match=", ".join(LANGUAGES[:1])):
        kernel_source("activate_16", "cuda")


@pytest.mark.parametrize("block", BLOCKS)
def test_a_log_notes_the_kernels_of_an_operator_and_its_backward(block: int) -> None:
    cpu_kernels()
    operators = torch.ops.dsgc_cpu
    index, rowptr = mask_to_selection(torch.rand(2, -(-40 // block), 5, 5) < 0.5, block == 1)
    source = (index, rowptr, None, None, "relu", [40, 5, 5])
    values = torch.ops.dsgc.pack(torch.randn(2, 40, 5, 5), index, rowptr, block).requires_grad_()
    expected = operators.activate(values, *source)
    with KernelLog() as log:
        found = operators.activate(values, *source)
        found.sum().backward()
    assert torch.equal(found, expected)
    noted = [call for call in log.calls if call[1] != "expand_bits"]
    assert noted == [
        ("activate", f"activate_{block}"),
        ("activate_backward", f"activate_backward_{block}"),
    ]
    for _, kernel in log.calls:
        assert kernel_source(kernel, target=AVX2)


def test_sources_elsewhere_are_part_of_a_library_s_name(tmp_path: Path) -> None:
    file = tmp_path / "kernels.py"
    file.write_text("a")
    first = kernels_key("mine", AVX2, (file,))
    file.write_text("b")
    assert kernels_key("mine", AVX2, (file,)) != first != kernels_key("mine", AVX2)
