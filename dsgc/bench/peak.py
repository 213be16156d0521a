"""How many multiply-adds a second this machine can do at all: what kernels are compared with."""

from __future__ import annotations

import functools
import hashlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dsgc.errors import KernelError

if TYPE_CHECKING:
    from dsgc.codegen.target import CpuTarget

__all__ = ["Peak", "machine_peak"]

_TASKS = 16  # of each thread: others make up for one that is held up
_ROUNDS = 1 << 16  # of a task, in the first run
_SECONDS = 0.02  # of a run: short, so that some find every core free on a shared machine
_REPEATS = 30
_MATRIX = 2048


@dataclass(frozen=True)
class Peak:
    """The machine's float32 arithmetic with a number of threads.

    Attributes:
        multiply_adds: done in a second, in the best of a few runs.
        threads: of torch, whose pool the kernel runs on.
        method: how it was found out, for people.
    """

    multiply_adds: float
    threads: int
    method: str


def machine_peak() -> Peak:
    """Measure the peak for torch's current number of threads; takes less than a second.

    A generated kernel multiplies and adds in registers. Where kernels cannot be built, the peak is
    the rate of a large matrix product of torch, and `method` says so.
    """
    threads = torch.get_num_threads()
    try:
        kernel = _kernel()
    except (KernelError, ImportError) as error:
        reason = str(error).partition("\n")[0]
        matrix = torch.ones(_MATRIX, _MATRIX)
        rate = _best_rate(lambda: matrix @ matrix, _MATRIX**3)
        return Peak(rate, threads, f"a large torch matrix product (no kernel: {reason})")
    # A factor below 1: the numbers settle, and become neither infinite nor denormal.
    constants, out = torch.tensor([0.5, 1.0]), torch.empty(_TASKS * threads)
    width = torch.zeros(1, dtype=torch.int64)
    elapsed = min(_seconds(lambda: kernel(constants, out, width, _ROUNDS)) for _ in range(2))
    rounds = max(_ROUNDS, int(_ROUNDS * _SECONDS / elapsed))
    amount = len(out) * rounds * int(width)
    rate = _best_rate(lambda: kernel(constants, out, width, rounds), amount)
    return Peak(rate, threads, "a generated kernel that multiplies and adds in registers")


def _best_rate(run: Callable[[], object], amount: int) -> float:
    """`amount` over the seconds of the fastest of a few runs."""
    return amount / min(_seconds(run) for _ in range(_REPEATS))


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return max(time.perf_counter() - started, 1e-9)


@functools.cache
def _kernel() -> Callable[..., None]:
    """The kernel, from the cache of all kernels."""
    from dsgc.codegen.cache import KernelCache
    from dsgc.codegen.cpu import Libraries
    from dsgc.codegen.families import Family

    # The cache knows the sources of dsgc.codegen only: the name tells versions of this one apart.
    source = Path(__file__).with_name("peak_kernel.py").read_bytes()
    name = f"peak_{hashlib.sha256(source).hexdigest()[:12]}"
    return Libraries(KernelCache())(Family(name, _functions), "multiply_add")


def _functions(target: CpuTarget) -> list[Any]:
    from dsgc.bench.peak_kernel import multiply_add

    # Enough chains to hide the latency of all units: at most 10 on x86, 16 on aarch64. All of them
    # and both constants must fit in the registers: 16 for AVX2 and less.
    chains = 24 if platform.machine() in ("aarch64", "arm64") else 12
    return [multiply_add(chains, target.lanes)]
