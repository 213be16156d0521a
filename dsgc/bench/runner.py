"""Measuring workloads: all sides in one process, in turn, from the same parameters."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from dsgc.bench.peak import Peak, machine_peak
from dsgc.bench.peak_memory import process_peak
from dsgc.bench.report import format_threads
from dsgc.bench.results import Cell, Row
from dsgc.bench.search import search_seconds
from dsgc.bench.sides import DSGC, EAGER, TITLES, Side, make_dense_sides, make_dsgc_side
from dsgc.bench.workload import Workload
from dsgc.errors import ConfigError, DsgcError
from dsgc.measure import Timing, TrainingStep, interleaved, kept_for_backward
from dsgc.module import SparseModule
from dsgc.multiply_adds import count_multiply_adds

__all__ = ["Options", "Report", "measure", "use_threads"]

Report = Callable[[str], None]

_PHASES = ("forward", "backward", "optimizer")


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        rounds: counted steps of each side, at least 1.
        warmup: steps before counting.
        backend: passed to `dsgc.compile`.
        compiled: whether torch.compile is one of the dense sides.
        memory: whether to measure memory, which takes two more processes a row.

    Raises:
        ConfigError: a value is not possible.
    """

    rounds: int = 10
    warmup: int = 2
    backend: str = "auto"
    compiled: bool = True
    memory: bool = True

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup < 0:
            raise ConfigError("rounds must be at least 1 and warmup at least 0", "rounds")


def measure(
    workloads: Iterable[Workload], options: Options, report: Report | None = None
) -> Iterator[Row]:
    """Measure workloads, one row after the other.

    Neighbours that differ only in sparsity and block share their dense sides; these are timed
    again for every row, in turn with dsgc.

    Args:
        workloads: what to measure.
        options: how.
        report: called with what is being done, in words.

    Raises:
        ConfigError: a model cannot be built, or does not fit its input.
    """
    say = report or (lambda text: None)
    peaks: dict[int, Peak] = {}
    for _, group in groupby(workloads, key=lambda one: replace(one, sparsity=0.5, block=None)):
        rows = list(group)
        with use_threads(rows[0].threads) as threads:
            if threads not in peaks:
                say(f"{format_threads(threads)}: measuring the machine's peak")
                peaks[threads] = machine_peak()
            yield from _measure_group(rows, options, peaks[threads], say)
        # torch.compile gives up on code it was shown too often, whatever model that was for.
        torch.compiler.reset()


@contextmanager
def use_threads(count: int | None) -> Iterator[int]:
    """Within, torch has `count` threads, or what it has for None; gives their number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _measure_group(
    workloads: list[Workload], options: Options, peak: Peak, say: Report
) -> Iterator[Row]:
    """Rows that share the dense sides."""
    first = workloads[0]
    say(f"{first.label}, {first.mode}: preparing the dense sides")
    untouched, data = first.build(), first.data()
    dense = make_dense_sides(first, untouched, data, compiled=options.compiled)
    dense_memory = _process_memory(first, EAGER, options, say)
    for workload in workloads:
        say(f"{workload.name}: preparing dsgc")
        sparse = make_dsgc_side(workload, copy.deepcopy(untouched), data, options.backend)
        sides = {**dense, DSGC: sparse}
        for side in sides.values():
            side.reset(untouched.state_dict())
        cells = _measure_sides(workload, sides, options, say)
        cells[EAGER] = _with_memory(cells[EAGER], dense_memory)
        if sparse.step is not None:
            memory = _process_memory(workload, DSGC, options, say)
            cells[DSGC] = _with_memory(cells[DSGC], memory)
        backend = sparse.model.backend if isinstance(sparse.model, SparseModule) else "none"
        search = None
        if sparse.step is not None and backend == "tvm":
            say(f"{workload.name}: profiling the search")
            search = search_seconds(sparse.step)
        yield Row(workload, torch.get_num_threads(), backend, cells, search, peak)


def _measure_sides(
    workload: Workload, sides: Mapping[str, Side], options: Options, say: Report
) -> dict[str, Cell]:
    """Time the sides that have a step; the others keep their note."""
    say(f"{workload.name}: measuring")
    phases: dict[str, list[object]] = {name: [] for name in sides}
    runs = {
        name: lambda name=name, step=side.step: phases[name].append(step())
        for name, side in sides.items()
        if side.step is not None
    }
    timings = interleaved(runs, rounds=options.rounds, warmup=options.warmup)
    cells = {name: Cell() for name, _ in TITLES}
    for name, side in sides.items():
        if side.step is None:
            cells[name] = Cell(note=side.note)
            continue
        cells[name] = _cell(side, timings[name], phases[name][options.warmup :])
    return cells


def _cell(side: Side, timing: Timing, phases: list[object]) -> Cell:
    cell = Cell(timing.seconds)
    step = side.step
    if isinstance(step, TrainingStep):
        parts: list[tuple[float, ...]] = [one for one in phases if isinstance(one, tuple)]
        medians = (statistics.median(part) for part in zip(*parts, strict=True))
        cell = replace(cell, phases=dict(zip(_PHASES, medians, strict=True)))
    # Generated code of others does not show its operators.
    if side.name in (EAGER, DSGC) and step is not None:
        cell = replace(cell, multiply_adds=count_multiply_adds(step))
        if isinstance(step, TrainingStep):
            cell = replace(cell, kept_bytes=kept_for_backward(step.forward, step.model))
    return cell


def _process_memory(
    workload: Workload, side: str, options: Options, say: Report
) -> int | str | None:
    """Bytes that a process of this side takes, why that is unknown, or None if nobody asked."""
    if not options.memory:
        return None
    say(f"{workload.name}: memory of a process of its own, {dict(TITLES)[side]}")
    own = workload.with_changes(threads=torch.get_num_threads())
    try:
        return process_peak(own, side, options.backend).above_start
    except DsgcError as error:
        return f"failed: {error}"


def _with_memory(cell: Cell, memory: int | str | None) -> Cell:
    if isinstance(memory, str):
        return replace(cell, process_note=memory)
    return replace(cell, process_bytes=memory)
