"""The 3x3 convolutions of VGG8 one by one, dsgc's operators beside oneDNN's.

`python -m benchmarks.layers --threads 1 --threads 2 --json layers.json`. Layer 1 reads the image
and stays dense. Selections are random: an operator's time depends on how many blocks were chosen at
a position, and hardly on which.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from torch import Tensor

from dsgc.bench.machine import describe_machine
from dsgc.bench.runner import use_threads
from dsgc.bench.session import wide_console
from dsgc.config import SparsityConfig
from dsgc.errors import DsgcError
from dsgc.files import check_place, write_json
from dsgc.measure import Timing, comparison_table, format_ratio, interleaved
from dsgc.select.projection import (
    leading_projection,
    project_weight,
    round_weight,
    search_dimension,
)

__all__ = ["LAYERS", "Layer", "LayerResult", "main", "measure_layer"]

BLOCK = 16
PASSES = ("forward", "backward_data", "backward_weight")
_UNIT = [1, 1]  # stride, padding and dilation alike
_TAPS = 9


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution with padding 1.

    Attributes:
        number: as counted in VGG8.
        inputs, outputs: channels.
        size: height and width of input and output.
        source: what it reads: a "dense" map, a "packed" one, or one "pooled" from a packed one.
    """

    number: int
    inputs: int
    outputs: int
    size: int
    source: Literal["dense", "packed", "pooled"]


LAYERS: tuple[Layer, ...] = (
    Layer(2, 128, 128, 32, "dense"),
    Layer(3, 128, 256, 16, "pooled"),
    Layer(4, 256, 256, 16, "packed"),
    Layer(5, 256, 512, 8, "pooled"),
    Layer(6, 512, 512, 8, "packed"),
)


@dataclass(frozen=True)
class LayerResult:
    """A layer at one sparsity and number of threads.

    Attributes:
        dense, sparse: seconds of every counted run, by pass.
        search: the same of finding the layer's selection.
    """

    layer: Layer
    sparsity: float
    threads: int
    batch: int
    dense: dict[str, Timing]
    sparse: dict[str, Timing]
    search: Timing

    @property
    def ratios(self) -> dict[str, float]:
        """How many times faster dsgc is, by pass; "all" has all passes, and the search too."""
        found = {name: self.dense[name].median / self.sparse[name].median for name in PASSES}
        own = sum(self.sparse[name].median for name in PASSES) + self.search.median
        return {**found, "all": self._dense_step / own}

    @property
    def search_shares(self) -> dict[str, float]:
        """The search as a part of the layer's dense forward, and of forward and backward."""
        forward = self.dense["forward"].median
        return {
            "of_forward": self.search.median / forward,
            "of_forward_and_backward": self.search.median / self._dense_step,
        }

    @property
    def _dense_step(self) -> float:
        return sum(self.dense[name].median for name in PASSES)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; times in seconds."""

        def seconds(timing: Timing) -> dict[str, Any]:
            return {"median": timing.median, "quartiles": list(timing.quartiles)}

        return {
            "layer": asdict(self.layer),
            "sparsity": self.sparsity,
            "threads": self.threads,
            "batch": self.batch,
            "dense": {name: seconds(timing) for name, timing in self.dense.items()},
            "dsgc": {name: seconds(timing) for name, timing in self.sparse.items()},
            "search": seconds(self.search),
            "ratios": self.ratios,
            "search_shares": self.search_shares,
        }


Groups = Mapping[tuple[int, float], Sequence[LayerResult]]
"""Results by threads and sparsity."""


def measure_layer(
    layer: Layer, sparsity: float, *, batch: int = 64, rounds: int = 10, warmup: int = 2
) -> LayerResult:
    """Time all passes of a layer and its search, dense and sparse in turn, with torch's threads.

    Args:
        layer: which one.
        sparsity: fraction of output blocks left out, and of the layers before.
        batch: images.
        rounds: counted runs of each.
        warmup: runs before counting.

    Raises:
        KernelError: generated kernels cannot be had.
    """
    from dsgc.codegen import cpu_kernels

    torch.manual_seed(layer.number)
    weight = torch.randn(layer.outputs, layer.inputs, 3, 3) / math.sqrt(_TAPS * layer.inputs)
    weight = weight.contiguous(memory_format=torch.channels_last)
    # The operators exist for as long as the library that defines them.
    library = cpu_kernels()
    with torch.no_grad():
        dense = _dense_runs(layer, weight, batch)
        sparse = _sparse_runs(layer, weight, batch, sparsity)
        runs = {f"dense {name}": run for name, run in dense.items()} | sparse
        for run in runs.values():
            run()  # builds what is built once, also where there is no round to warm up
        timings = interleaved(runs, rounds=rounds, warmup=warmup)
    del library
    return LayerResult(
        layer,
        sparsity,
        torch.get_num_threads(),
        batch,
        {name: timings[f"dense {name}"] for name in PASSES},
        {name: timings[name] for name in PASSES},
        timings["search"],
    )


def _dense_runs(layer: Layer, weight: Tensor, batch: int) -> dict[str, Callable[[], object]]:
    """oneDNN through PyTorch, channels-last."""
    x, grad = _map(batch, layer.inputs, layer.size), _map(batch, layer.outputs, layer.size)

    def backward(data: bool, weights: bool) -> object:
        return torch.ops.aten.convolution_backward(
            *(grad, x, weight, None, _UNIT, _UNIT, _UNIT, False, [0, 0], 1, [data, weights, False])
        )

    return {
        "forward": lambda: F.conv2d(x, weight, padding=1),
        "backward_data": lambda: backward(True, False),
        "backward_weight": lambda: backward(False, True),
    }


def _sparse_runs(
    layer: Layer, weight: Tensor, batch: int, sparsity: float
) -> dict[str, Callable[[], object]]:
    """dsgc's operators, called as a lowered graph calls them."""
    ops = torch.ops.dsgc_cpu
    source = _source(layer, batch, sparsity)
    winners = _winners(layer.outputs, 1 - sparsity)
    index, rowptr = _selection(batch * layer.size**2, layer.outputs, winners)
    grad = torch.randn(index.numel(), BLOCK)
    window = (BLOCK, _UNIT, _UNIT, _UNIT)

    def backward(data: bool, weights: bool) -> object:
        return ops.conv2d_backward(
            *(grad, *source, weight, index, rowptr, *window, data, weights, False)
        )

    search = _search_arguments(layer, weight)

    def find() -> object:
        scores = ops.drs_scores(*source, *search, layer.outputs, BLOCK, [3, 3], *window[1:])
        return ops.select_winners(scores, winners, [layer.size] * 2, _UNIT, False)

    return {
        "forward": lambda: ops.conv2d(*source, weight, None, index, rowptr, *window),
        "backward_data": lambda: backward(True, False),
        "backward_weight": lambda: backward(False, True),
        "search": find,
    }


def _map(batch: int, channels: int, size: int) -> Tensor:
    dense = torch.randn(batch, channels, size, size)
    return dense.contiguous(memory_format=torch.channels_last)


def _source(layer: Layer, batch: int, sparsity: float) -> tuple[object, ...]:
    """The layer's input as an operator takes it: values, selection and deferred activation."""
    size = [layer.inputs, layer.size, layer.size]
    affine = (torch.rand(layer.inputs) + 0.5, torch.randn(layer.inputs), "affine_relu", size)
    if layer.source == "dense":
        return _map(batch, layer.inputs, layer.size), None, None, *affine
    # A pooled position has every block that one of its four had.
    density = 1 - sparsity if layer.source == "packed" else 1 - sparsity**4
    winners = _winners(layer.inputs, density)
    index, rowptr = _selection(batch * layer.size**2, layer.inputs, winners)
    values = torch.randn(index.numel(), BLOCK)
    if layer.source == "packed":
        return values, index, rowptr, *affine
    # Pooling has applied the activation already.
    return values.relu_(), index, rowptr, None, None, "identity", size


def _winners(channels: int, density: float) -> int:
    """Blocks of a position, rounded as selectors do it."""
    blocks = channels // BLOCK
    return min(blocks, max(1, int(blocks * density + 0.5)))


def _selection(positions: int, channels: int, winners: int) -> tuple[Tensor, Tensor]:
    """`winners` blocks at every position, chosen at random: (index, rowptr)."""
    chosen = torch.rand(positions, channels // BLOCK).topk(winners).indices.sort().values
    rowptr = torch.arange(0, (positions + 1) * winners, winners, dtype=torch.int32)
    return chosen.to(torch.int32).view(-1), rowptr


def _search_arguments(layer: Layer, weight: Tensor) -> tuple[Tensor, ...]:
    """Projection, projected weight, unit and offset, as a selector makes them."""
    settings = SparsityConfig().settings_for(f"layer {layer.number}", layer.outputs)
    columns = search_dimension(settings, layer.outputs, layer.inputs, _TAPS)
    projection = leading_projection(weight, columns, False)
    projected, unit = round_weight(project_weight(weight, projection, False))
    return projection, projected, unit, torch.zeros(layer.outputs)


def geometric_means(results: Sequence[LayerResult]) -> dict[str, float]:
    """Of the ratios of some layers, by pass."""
    names = (*PASSES, "all")
    logs = {name: [math.log(result.ratios[name]) for result in results] for name in names}
    return {name: math.exp(sum(values) / len(values)) for name, values in logs.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse `arguments`, measure, print; exits with 2 for wrong ones, 1 without kernels."""
    parser = _parser()
    options = parser.parse_args(arguments)
    sparsities: list[float] = options.sparsity or [0.5, 0.8, 0.9]
    if not all(0 < sparsity < 1 for sparsity in sparsities):
        parser.error("sparsity must be between 0 and 1, both excluded")
    if min(options.batch, options.rounds, *(options.threads or [1])) < 1 or options.warmup < 0:
        parser.error("batch, rounds and threads must be at least 1, and warmup at least 0")
    counts = options.threads or [torch.get_num_threads()]
    layers = [layer for layer in LAYERS if layer.number in (options.layers or _numbers())]
    try:
        if options.json is not None:
            check_place(options.json)
        groups = _measure(list(product(counts, sparsities, layers)), options)
        if options.json is not None:
            write_json(options.json, _content(groups))
    except (DsgcError, OSError) as error:
        sys.exit(f"error: {error}")
    wide_console().print(_table(groups, options.batch))


def _measure(cases: Sequence[tuple[int, float, Layer]], options: argparse.Namespace) -> Groups:
    """Measure every case (threads, sparsity, layer), with progress on stderr."""
    groups: dict[tuple[int, float], list[LayerResult]] = {}
    columns = (TextColumn("{task.description}"), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        for threads, sparsity, layer in bars.track(cases, description="measuring layers"):
            with use_threads(threads):
                result = measure_layer(
                    layer,
                    sparsity,
                    batch=options.batch,
                    rounds=options.rounds,
                    warmup=options.warmup,
                )
            groups.setdefault((threads, sparsity), []).append(result)
    return groups


def _content(groups: Groups) -> dict[str, Any]:
    return {
        "machine": {**describe_machine(), "threads": sorted({threads for threads, _ in groups})},
        "rows": [result.as_dict() for results in groups.values() for result in results],
        "geometric_means": [
            {"threads": threads, "sparsity": sparsity, **geometric_means(results)}
            for (threads, sparsity), results in groups.items()
        ],
    }


def _table(groups: Groups, batch: int) -> Table:
    rows = []
    for (threads, sparsity), results in groups.items():
        what = (str(threads), f"{100 * sparsity:g} %")
        rows += [(f"layer {result.layer.number}", *what, *_cells(result)) for result in results]
        means = geometric_means(results)
        texts = (_ratio(means[name]) for name in (*PASSES, "all"))
        rows.append(("geometric mean", *what, *texts, "", ""))
    columns = ("", "threads", "sparsity", *(name.replace("_", "-") for name in PASSES))
    caption = (
        "Milliseconds of oneDNN (channels-last), of dsgc, and how they compare: medians, measured "
        "in turn.\nAll: the three passes, and for dsgc the search. dsgc's passes apply the input's "
        "normalisation and ReLU too (layers 2, 4 and 6)."
    )
    return comparison_table(
        f"3x3 convolutions of VGG8, batch {batch}",
        (*columns, "all", "search of forward", "of forward + backward"),
        rows,
        caption=caption,
    )


def _cells(result: LayerResult) -> list[str]:
    cells = []
    for name in PASSES:
        dense, own = 1000 * result.dense[name].median, 1000 * result.sparse[name].median
        cells.append(f"{dense:.2f} / {own:.2f}, {_ratio(result.ratios[name])}")
    shares = (f"{100 * share:.3g} %" for share in result.search_shares.values())
    return [*cells, _ratio(result.ratios["all"]), *shares]


def _ratio(ratio: float) -> str:
    return format_ratio(ratio, 1.0, better="faster", worse="slower")


def _numbers() -> list[int]:
    return [layer.number for layer in LAYERS]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="VGG8's convolutions, dsgc beside oneDNN.")
    add = parser.add_argument
    add("--threads", type=int, action="append", help="repeatable; torch's number by default")
    add("--sparsity", type=float, action="append", help="repeatable; 0.5, 0.8 and 0.9 by default")
    add("--layers", type=int, nargs="+", choices=_numbers(), help="all by default")
    add("--batch", type=int, default=64, help="images")
    add("--rounds", type=int, default=10, help="counted runs of each")
    add("--warmup", type=int, default=2, help="runs before counting")
    add("--json", type=Path, metavar="FILE", help="write everything to this file")
    return parser


if __name__ == "__main__":
    main()
