"""How long choosing what to compute takes, from a profile."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["search_seconds"]

_OPERATORS = ("drs_scores", "select_winners", "select_above")
_KERNELS = ("project_", "round_rows", "row_bytes", "block_scores_", "rank_")  # of programs
_STEP = "dsgc_bench_step"


def search_seconds(
    step: Callable[[], object], *, namespace: str = "dsgc_cpu", steps: int = 3
) -> float:
    """Seconds of a step that the search takes, as operators or as kernels of a program; the median
    of some profiled steps.

    Args:
        step: of a sparse module that runs packed operators.
        namespace: of these operators.
        steps: how many to profile.
    """
    # Else the profiler writes to stderr when it starts and stops, through the progress shown there.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    names = {f"{namespace}::{operator}" for operator in _OPERATORS}
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            with record_function(_STEP):
                step()
    events = list(profiler.events() or ())
    spans = [event.time_range for event in events if event.name == _STEP]
    found = [event.time_range for event in events if event.name in names or _searches(event.name)]
    sums = [
        sum(float(one.elapsed_us()) for one in found if span.start <= one.start < span.end)
        for span in spans
    ]
    return statistics.median(sums) / 1e6


def _searches(name: str) -> bool:
    """Whether a range of that name is a kernel of the search."""
    return name.rpartition(": ")[2].startswith(_KERNELS)
