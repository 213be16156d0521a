"""Measures one workload: a training step of eager channels-last PyTorch beside that of dsgc."""

from __future__ import annotations

import copy
import platform
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn

import dsgc
from benchmarks.workloads import Workload
from dsgc.measure import (
    TrainingStep,
    channels_last,
    comparison_table,
    format_bytes,
    format_count,
    format_ratio,
    interleaved,
    kept_for_backward,
)
from dsgc.multiply_adds import MultiplyAdds, count_multiply_adds

__all__ = ["Result", "Side", "measure", "table"]


@dataclass(frozen=True)
class Side:
    """One network's figures; times are medians in seconds, quartiles those of the whole step."""

    step: float
    step_quartiles: tuple[float, float]
    forward: float
    backward: float
    optimizer: float
    kept_bytes: int
    multiply_adds: MultiplyAdds


@dataclass(frozen=True)
class Result:
    """Both sides of a workload, and where they were measured."""

    workload: Workload
    backend: str
    threads: int
    machine: str
    torch_version: str
    dense: Side
    sparse: Side

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers and text, for JSON."""
        values = asdict(self)
        values["name"] = self.workload.name
        values["speedup"] = self.dense.step / self.sparse.step
        values["memory_ratio"] = self.dense.kept_bytes / max(self.sparse.kept_bytes, 1)
        values["achieved_sparsity"] = self.sparse.multiply_adds.sparsity
        return values


def measure(
    workload: Workload,
    *,
    rounds: int = 10,
    warmup: int = 2,
    backend: str = "auto",
    config: dsgc.SparsityConfig | None = None,
) -> Result:
    """Measure `workload`: same parameters and batch on both sides, in one process, in turn.

    A step is forward, cross-entropy, backward and SGD with momentum; dsgc's includes the search.
    `config` overrides the default configuration, and with it the workload's sparsity.
    """
    if workload.threads is not None:
        torch.set_num_threads(workload.threads)
    torch.manual_seed(0)
    dense = channels_last(workload.model())
    images, labels = workload.data()
    settings = config or dsgc.SparsityConfig(sparsity=workload.sparsity)
    sparse = dsgc.compile(copy.deepcopy(dense), config=settings, backend=backend)

    def step(model: nn.Module) -> TrainingStep:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return TrainingStep(model.train(), optimizer, F.cross_entropy, images, labels)

    steps = {"dense": step(dense), "sparse": step(sparse)}
    phases: dict[str, list[tuple[float, float, float]]] = {name: [] for name in steps}
    runs = {
        name: lambda name=name, step=step: phases[name].append(step())
        for name, step in steps.items()
    }
    timings = interleaved(runs, rounds=rounds, warmup=warmup)
    sides = {}
    for name, one in steps.items():
        counted = zip(*phases[name][warmup:], strict=True)
        forward, backward, optimizer = (statistics.median(part) for part in counted)
        sides[name] = Side(
            step=timings[name].median,
            step_quartiles=timings[name].quartiles,
            forward=forward,
            backward=backward,
            optimizer=optimizer,
            kept_bytes=kept_for_backward(one.forward, one.model),
            multiply_adds=count_multiply_adds(one),
        )
    where = (platform.machine(), torch.get_num_threads(), torch.__version__)
    return Result(workload, sparse.backend, where[1], where[0], str(where[2]), **sides)


def table(result: Result) -> Table:
    """The figures of one workload, sparse beside dense."""
    dense, sparse = result.dense, result.sparse
    times = [
        ("training step", dense.step, sparse.step),
        ("  forward", dense.forward, sparse.forward),
        ("  backward", dense.backward, sparse.backward),
        ("  optimizer", dense.optimizer, sparse.optimizer),
    ]
    rows = [
        (
            text,
            f"{1000 * left:.1f} ms",
            f"{1000 * right:.1f} ms",
            format_ratio(left, right, better="faster", worse="slower"),
        )
        for text, left, right in times
    ]
    rows.append(
        (
            "kept for backward",
            format_bytes(dense.kept_bytes),
            format_bytes(sparse.kept_bytes),
            format_ratio(dense.kept_bytes, sparse.kept_bytes),
        )
    )
    left, right = dense.multiply_adds, sparse.multiply_adds
    all_work = right.done + right.search
    rows += [
        (
            "multiply-adds",
            format_count(left.done),
            format_count(all_work),
            format_ratio(left.done, all_work),
        ),
        ("  of these search", "0", format_count(right.search), ""),
        ("neurons left out", "0 %", _percent(right.sparsity), ""),
    ]
    threads = f"{result.threads} thread{'s' if result.threads != 1 else ''}"
    title = f"{result.workload.name}, {threads}, torch {result.torch_version}, {result.machine}"
    caption = (
        "Medians, measured in turn. Dense: eager PyTorch, channels-last. "
        f"Sparse: dsgc, backend {result.backend}, search included."
    )
    return comparison_table(title, ("", "dense", "sparse", ""), rows, caption=caption)


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"
