"""What was measured of a workload, and what follows from it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from dsgc.bench.peak import Peak
from dsgc.bench.sides import DSGC, EAGER, TITLES
from dsgc.bench.workload import Workload
from dsgc.measure import Timing
from dsgc.multiply_adds import MultiplyAdds

__all__ = ["Cell", "Row"]


@dataclass(frozen=True)
class Cell:
    """What was measured of one side.

    Attributes:
        seconds: of every counted step, in their order; empty where the side could not run.
        note: why it could not.
        phases: median seconds of forward, backward and optimizer, in training.
        multiply_adds: of a step; None for sides that are not counted.
        kept_bytes: kept for backward, in training.
        process_bytes: resident memory that a process of a few steps takes above its start.
        process_note: why that could not be measured.
    """

    seconds: tuple[float, ...] = ()
    note: str = ""
    phases: dict[str, float] | None = None
    multiply_adds: MultiplyAdds | None = None
    kept_bytes: int | None = None
    process_bytes: int | None = None
    process_note: str = ""

    @property
    def timing(self) -> Timing | None:
        """The counted steps, if there are any."""
        return Timing(self.seconds) if self.seconds else None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with median and quartiles in seconds."""
        timing = self.timing
        return {
            "step_seconds": timing.median if timing else None,
            "quartiles": list(timing.quartiles) if timing else None,
            **asdict(self),
        }


@dataclass(frozen=True)
class Row:
    """A workload measured on all sides.

    Attributes:
        workload: what was measured.
        threads: of all sides.
        backend: what ran dsgc's side, "tvm" or "reference".
        cells: for every side of `TITLES`, by its name.
        search_seconds: of a step of dsgc; None where no packed operator ran.
        peak: of the machine with these threads.
    """

    workload: Workload
    threads: int
    backend: str
    cells: dict[str, Cell]
    search_seconds: float | None
    peak: Peak

    def seconds(self, side: str) -> float | None:
        """The median step of a side."""
        timing = self.cells[side].timing
        return timing.median if timing else None

    @property
    def best_dense(self) -> str:
        """The name of the fastest dense side."""
        measured = {name: self.seconds(name) for name, _ in TITLES if name != DSGC}
        return min((seconds, name) for name, seconds in measured.items() if seconds)[1]

    @property
    def ratio(self) -> float | None:
        """How many times faster dsgc is than the best dense side: below 1 it is slower."""
        best, own = self.seconds(self.best_dense), self.seconds(DSGC)
        return best / own if best and own else None

    @property
    def bound(self) -> float | None:
        """Dense multiply-adds over those that dsgc did, search left out: what `ratio` would be if
        a multiply-add took as long on both sides, and all the rest no time.
        """
        dense, own = self.cells[EAGER].multiply_adds, self.cells[DSGC].multiply_adds
        return dense.done / own.done if dense and own and own.done else None

    @property
    def achieved_sparsity(self) -> float | None:
        """Of the layers that were sparse; None if none was, or if no packed operator ran."""
        counted = self.cells[DSGC].multiply_adds
        return counted.sparsity if counted else None

    def search_share(self, side: str) -> float | None:
        """The search's seconds as a part of the step of `side`."""
        step = self.seconds(side)
        return self.search_seconds / step if self.search_seconds is not None and step else None

    def peak_fraction(self, side: str, *, search: bool = False) -> float | None:
        """Multiply-adds a second as a part of the machine's peak, with or without the search's.

        The search multiplies numbers of 8 bits; they count as if they were float32.
        """
        counted, step = self.cells[side].multiply_adds, self.seconds(side)
        if counted is None or not step:
            return None
        done = counted.done + (counted.search if search else 0)
        return done / step / self.peak.multiply_adds

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers and text, for JSON. Times are in seconds, memory in bytes."""
        return {
            "name": self.workload.name,
            "workload": asdict(self.workload),
            "mode": self.workload.mode,
            "threads": self.threads,
            "sparsity": self.workload.sparsity,
            "achieved_sparsity": self.achieved_sparsity,
            "backend": self.backend,
            **{name: self.cells[name].as_dict() for name, _ in TITLES},
            "best_dense": self.best_dense,
            "ratio": self.ratio,
            "bound": self.bound,
            "search": {
                "seconds": self.search_seconds,
                "of_dense_step": self.search_share(EAGER),
                "of_dsgc_step": self.search_share(DSGC),
            },
            "peak": asdict(self.peak),
            "peak_fraction": {
                "eager": self.peak_fraction(EAGER),
                "dsgc": self.peak_fraction(DSGC),
                "dsgc_with_search": self.peak_fraction(DSGC, search=True),
            },
        }
