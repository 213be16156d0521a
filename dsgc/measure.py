"""Measuring whole training steps: time, bytes kept for backward, and a table of them.

Everything here treats a model as a black box, so that dense and sparse are measured in one way.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from rich.table import Table
from torch import Tensor, nn

__all__ = [
    "Timing",
    "TrainingStep",
    "channels_last",
    "comparison_table",
    "format_bytes",
    "format_count",
    "format_ratio",
    "interleaved",
    "kept_for_backward",
]


@dataclass(frozen=True)
class TrainingStep:
    """One step of training: forward, loss, backward and the optimizer, on a fixed batch.

    Attributes:
        model: called with `inputs`.
        optimizer: owns the model's parameters.
        loss: takes the model's output and `targets`, gives a scalar.
        inputs: what the model is called with.
        targets: what the loss compares with.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[Tensor, Tensor], Tensor]
    inputs: Tensor
    targets: Tensor

    def forward(self) -> Tensor:
        """The loss, a scalar with a graph."""
        return self.loss(self.model(self.inputs), self.targets)

    def __call__(self) -> tuple[float, float, float]:
        """Do the whole step; returns the seconds of forward, backward and optimizer."""
        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.forward()
        forward = time.perf_counter()
        loss.backward()  # type: ignore[no-untyped-call]
        backward = time.perf_counter()
        self.optimizer.step()
        return forward - started, backward - forward, time.perf_counter() - backward


@dataclass(frozen=True)
class Timing:
    """Seconds that repeated runs took.

    Attributes:
        seconds: one entry a run, in the order of the runs.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median run."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile; both the median where there is only one run."""
        if len(self.seconds) < 2:
            return self.median, self.median
        lower, _, upper = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return lower, upper


def channels_last(model: nn.Module) -> nn.Module:
    """`model` itself, its 4-D parameters in channels-last order, the fastest one on CPUs."""
    return model.to(memory_format=torch.channels_last)  # type: ignore[no-any-return, call-overload]


def interleaved(
    runs: Mapping[str, Callable[[], object]], *, rounds: int = 10, warmup: int = 2
) -> dict[str, Timing]:
    """Time several things in turn, so that a change of the machine's speed meets all of them.

    Every round runs each once, and every second round in reverse order. Warm-up rounds (caches,
    compilation, memory pools) are not counted.

    Args:
        runs: what to run, by name.
        rounds: counted runs of each, at least 1.
        warmup: rounds before counting.

    Returns:
        The timing of each, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-warmup, rounds):
        names = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        for name in names:
            start = time.perf_counter()
            runs[name]()
            elapsed = time.perf_counter() - start
            if turn >= 0:
                seconds[name].append(elapsed)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def kept_for_backward(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps alive between forward and backward.

    Counted with saved-tensor hooks: every distinct storage once and whole, also where only a view
    of it is saved. Parameters and buffers of `model` are left out: they exist anyway.

    Args:
        forward: runs the forward pass and returns the loss.
        model: whose parameters and buffers do not count.
    """
    # Alive while we count: what is replaced meanwhile must not give its address to an activation.
    known = [tensor.detach() for tensor in chain(model.parameters(), model.buffers())]
    permanent = {tensor.untyped_storage().data_ptr() for tensor in known}
    # Holding the tensors keeps their addresses from being given out again while we count.
    held: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        held.append(tensor.detach())
        return held[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    storages = {
        storage.data_ptr(): storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in held)
    }
    del loss, known
    return sum(size for address, size in storages.items() if address not in permanent)


def format_bytes(count: float) -> str:
    """Bytes for people, in powers of ten: `12.3 MB`."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def format_count(count: float) -> str:
    """A large number for people: `1.23 G`."""
    for unit in ("", " k", " M"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g} G"


def format_ratio(dense: float, sparse: float, *, better: str = "fewer", worse: str = "more") -> str:
    """How `sparse` compares with `dense` where small is good: `3.2x fewer` or `1.1x more`."""
    if sparse <= 0 or dense <= 0:
        return "-"
    if sparse <= dense:
        return f"{dense / sparse:.2f}x {better}"
    return f"{sparse / dense:.2f}x {worse}"


def comparison_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str | None = None
) -> Table:
    """A table whose first column names the figure and whose others are right-aligned values."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
