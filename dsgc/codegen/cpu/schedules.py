"""The schedules that kernels of packed inputs can be run with, and what a choice depends on."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

from dsgc.codegen.cpu.layout import LIST_LENGTH, Geometry, Selection
from dsgc.ops.layout import ceil_div

__all__ = ["CHUNK", "SCHEDULES", "Layer", "Schedule", "each_schedule"]

Result = TypeVar("Result")

CHUNK = 256  # target slots whose pairs are sorted at a time, unless tried otherwise
_DENSITY_STEPS = 8  # parts of 1 between which densities are not told apart


class Schedule(NamedTuple):
    """How a packed kernel cuts its work; results are the same to the bit.

    Attributes:
        chunk: target slots whose pairs are sorted at a time. Fewer mean shorter buckets for each
            load of a block of weights, more mean that rows have left the cache when their turn
            comes.
        length: slots that a list should have, so how many tasks there are.
    """

    chunk: int
    length: int


SCHEDULES = {
    f"chunk={chunk} length={length}": Schedule(chunk, length)
    for chunk, length in ((CHUNK, LIST_LENGTH), (128, 1024), (512, 4096), (256, 8192))
}


def each_schedule(run: Callable[[Schedule], Result]) -> dict[str, Callable[[], Result]]:
    """The candidates for a tuner: ``run`` with every schedule."""
    return {name: partial(run, schedule) for name, schedule in SCHEDULES.items()}


class Layer(NamedTuple):
    """What the time of a convolution between two selections depends on."""

    geometry: Geometry
    inputs: int
    outputs: int
    bi: int
    bo: int
    source: Selection
    target: Selection

    def key(self, work: str) -> str:
        """A name for ``work`` on this layer; batches of similar size and density share it."""
        g = self.geometry
        return (
            f"{work} {self.inputs}/{self.bi}>{self.outputs}/{self.bo} kernel={g.kernel} "
            f"{g.source}>{g.target} mul={g.mul} div={g.div} "
            f"positions<2^{self.target.positions.bit_length()} "
            f"density={_step(self.read)}>{_step(self.made)}"
        )

    @property
    def read(self) -> float:
        """The part of the source's blocks that are present."""
        return self.source.density(ceil_div(self.inputs, self.bi))

    @property
    def made(self) -> float:
        """The part of the target's blocks that are present."""
        return self.target.density(ceil_div(self.outputs, self.bo))


def _step(density: float) -> str:
    return f"{round(density * _DENSITY_STEPS)}/{_DENSITY_STEPS}"
