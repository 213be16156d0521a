"""CPU targets: which instructions kernels may use, and how wide their register tiles are."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from dsgc.codegen.tiles import VECTOR
from dsgc.errors import ConfigError

__all__ = ["NAMED_TARGETS", "CpuTarget", "host_target", "named_target"]

_REGISTERS = {16: 32, 8: 16, 4: 16}  # vector registers that kernels count on, by lanes
_SCORE_COLUMNS = (32, 64)  # whole blocks of any size, and whole parts of SCORE_CHANNELS


@dataclass(frozen=True)
class CpuTarget:
    """A CPU to generate code for.

    Attributes:
        name: what people call it.
        lanes: float32 lanes of its widest vector register.
        options: TVM's target options, as pairs.
        members: positions that share a weight vector in kernels with a dense input.
        score_members, score_columns: register tile of the low-dimensional convolution (positions x
            channels).
        byte_dots: whether it adds products of 8-bit numbers in one instruction (AVX-512 VNNI).

    Raises:
        ConfigError: kernels cannot be cut to these sizes.
    """

    name: str
    lanes: int
    options: tuple[tuple[str, str | tuple[str, ...]], ...]
    members: int
    score_members: int
    score_columns: int
    byte_dots: bool = False

    def __post_init__(self) -> None:
        if self.lanes not in _REGISTERS:
            self._refuse("lanes", f"one of {', '.join(map(str, sorted(_REGISTERS)))}")
        if self.members < 1:
            self._refuse("members", "at least 1")
        if self.score_members < 2 or self.score_members % 2:
            self._refuse("score_members", "an even number, its halves are summed apart")
        if self.score_columns not in _SCORE_COLUMNS:
            self._refuse("score_columns", f"one of {', '.join(map(str, _SCORE_COLUMNS))}")

    def _refuse(self, field: str, wanted: str) -> None:
        found = getattr(self, field)
        raise ConfigError(f"target {self.name!r}: {field}={found} is not possible: {wanted}", field)

    @property
    def moves_together(self) -> bool:
        """Whether it moves the chosen lanes of a vector together in one instruction (AVX-512)."""
        return self.lanes == VECTOR

    def held(self, columns: int) -> int:
        """How many rows of ``columns`` float32 fit in half of the vector registers."""
        return max(1, _REGISTERS[self.lanes] // 2 // max(1, columns // self.lanes))

    def tvm(self) -> Any:
        """This target as a ``tvm.target.Target``."""
        from tvm.target import Target

        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options}
        return Target({"kind": "llvm", **plain})


def _target(
    name: str, lanes: int, byte_dots: bool = False, **options: str | tuple[str, ...]
) -> CpuTarget:
    """A target with ``lanes`` float32 lanes a vector register; register tiles follow from it.

    AVX-512 has 32 registers of 16 lanes, the others at most 16 (or 32 of 4 lanes): smaller tiles,
    or sums would spill.
    """
    members, score = (12, (6, 64)) if lanes == 16 else (4, (2, 32))
    return CpuTarget(name, lanes, tuple(sorted(options.items())), members, *score, byte_dots)


NAMED_TARGETS = {
    target.name: target
    for target in (
        _target("avx512", 16, mcpu="skylake-avx512"),
        _target("avx512-vnni", 16, True, mcpu="cascadelake"),
        _target("avx2", 8, mcpu="haswell"),
        _target("x86-64", 4, mcpu="x86-64"),
        _target("aarch64", 4, mtriple="aarch64-linux-gnu", mattr=("+neon",)),
    )
}


def named_target(name: str) -> CpuTarget:
    """One of :data:`NAMED_TARGETS`.

    Raises:
        ValueError: for any other name.
    """
    if name not in NAMED_TARGETS:
        raise ValueError(f"unknown target {name!r}: choose one of {', '.join(NAMED_TARGETS)}")
    return NAMED_TARGETS[name]


@functools.cache
def host_target() -> CpuTarget:
    """The CPU this process runs on, with exactly the features that it reports."""
    import tvm
    from tvm.target import Target
    from tvm.target import codegen as llvm

    cpu = str(tvm.get_global_func("tvm.codegen.llvm.GetHostCPUName")())
    reported = tvm.get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()
    implied = set(llvm.llvm_get_cpu_features(Target({"kind": "llvm", "mcpu": cpu})))
    present = {str(name) for name, value in reported.items() if value}
    absent = {str(name) for name, value in reported.items() if not value}
    features = sorted(f"+{name}" for name in present - implied)
    features += sorted(f"-{name}" for name in absent & implied)
    lanes = 16 if "avx512f" in present else 8 if "avx2" in present else 4
    byte_dots = lanes == 16 and "avx512vnni" in present
    if features:
        return _target("host", lanes, byte_dots, mcpu=cpu, mattr=tuple(features))
    return _target("host", lanes, byte_dots, mcpu=cpu)
