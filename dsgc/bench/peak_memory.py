"""The memory that a process takes for a few steps of one side.

Run as `python -m dsgc.bench.peak_memory SIDE WORKLOAD`, a process of its own for each side, because
memory that one side has given back still counts for the next. It prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dsgc.bench.sides import DSGC, first_line, make_dsgc_side, make_step
from dsgc.bench.workload import Workload
from dsgc.errors import DsgcError

__all__ = ["ProcessPeak", "main", "process_peak"]

_STEPS = 3


@dataclass(frozen=True)
class ProcessPeak:
    """Resident memory of a process in bytes.

    Attributes:
        start: after the imports, before there is a model.
        peak: the most until the last step.
    """

    start: int
    peak: int

    @property
    def above_start(self) -> int:
        """What the side took: parameters, gradients, activations, code loaded on the way."""
        return self.peak - self.start


def process_peak(workload: Workload, side: str, backend: str = "auto") -> ProcessPeak:
    """Run a few steps of a side in a fresh process and see what they take.

    Args:
        workload: its `threads` is set in the process.
        side: `EAGER` or `DSGC`.
        backend: of dsgc.

    Raises:
        DsgcError: the process failed; the message is the last line it wrote.
    """
    command = [sys.executable, "-m", "dsgc.bench.peak_memory", side, json.dumps(asdict(workload))]
    # The same modules must be found there as here, whatever made them so.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [*command, backend], capture_output=True, text=True, check=False, env=environment
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DsgcError(lines[-1])
    return ProcessPeak(**json.loads(done.stdout.strip().splitlines()[-1]))


def main(arguments: Sequence[str]) -> None:
    """Measure in this process: `arguments` are the side, the workload as JSON and the backend."""
    side, text, backend = arguments
    fields = json.loads(text)
    shape = fields.pop("input_shape")
    workload = Workload(**fields, input_shape=None if shape is None else tuple(shape))
    if workload.threads is not None:
        torch.set_num_threads(workload.threads)
    _forget_peak()
    start = _memory("VmRSS")
    model, data = workload.build(), workload.data()
    if side == DSGC:
        made = make_dsgc_side(workload, model, data, backend)
        if made.step is None:
            raise SystemExit(made.note)
        step = made.step
    else:
        step = make_step(workload, model, data)
    for _ in range(_STEPS):
        step()
    print(json.dumps(asdict(ProcessPeak(start, _memory("VmHWM")))))


def _memory(field: str) -> int:
    """`VmRSS` (now) or `VmHWM` (most so far) in bytes; the most so far where there is no /proc."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        found = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(found[field].split()[0]) * 1024
    except (OSError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def _forget_peak() -> None:
    """Count the most from now on: imports may have taken more for a moment."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DsgcError as error:
        raise SystemExit(first_line(error)) from error
