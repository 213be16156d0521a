"""A call of an artifact beside the module that it was made of and the dense network elsewhere.

    python -m benchmarks.artifact --batch 1 --batch 64 --threads 1 --threads 2

Sides: the artifact in `dsgc_runtime`, the compiled module in Python, and the dense network in ONNX
Runtime and in eager PyTorch (channels last). Same parameters, inputs and threads; medians, taken in
turn. At small batches a turn is several calls, as a service makes them: after a single one every
side would find the others' weights in the caches.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import dsgc
import dsgc_runtime
from dsgc import zoo
from dsgc.bench.machine import describe_machine
from dsgc.bench.runner import use_threads
from dsgc.bench.session import wide_console
from dsgc.bench.sides import make_onnx_side
from dsgc.errors import DsgcError
from dsgc.files import check_place, write_json
from dsgc.measure import Timing, channels_last, comparison_table, format_ratio, interleaved

__all__ = ["main", "measure"]

_TRAINED = 64  # images of a training batch
_CALLS = 10  # of a turn at batch 1
SIDES = ("artifact", "module", "onnxruntime", "eager")


def measure(
    network: str, sizes: dict[str, Any], sparsity: float, batch: int, threads: int, rounds: int
) -> dict[str, Timing]:
    """The time of a call, by side."""
    torch.manual_seed(0)
    dense = channels_last(zoo.build(network, **sizes)).eval()
    about = zoo.NETWORKS[network]
    side = sizes.get("image_size") or about.image_size
    images = torch.randn(batch, about.in_channels, side, side)
    sparse = dsgc.compile(dense, sparsity=sparsity).eval()
    with use_threads(threads), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        # Layers are chosen for batches as large as those of training, whatever is run afterwards.
        sparse(images if batch >= _TRAINED else images.repeat(-(-_TRAINED // batch), 1, 1, 1))
        model = dsgc_runtime.load(dsgc.export(sparse, Path(folder) / "m.dsgc", images), threads)
        onnx = make_onnx_side(copy.deepcopy(dense), images)
        if onnx.step is None:
            raise dsgc.ExportError(f"there is no side in ONNX Runtime: {onnx.note}")
        array = images.numpy()
        runs: dict[str, Callable[[], object]] = {
            "artifact": lambda: model(array),
            "module": lambda: sparse(images),
            "onnxruntime": onnx.step,
            "eager": lambda: dense(images),
        }
        calls = max(1, _CALLS // batch)
        turns = {side: partial(_repeat, run, calls) for side, run in runs.items()}
        timings = interleaved(turns, rounds=rounds)
    return {side: Timing(tuple(s / calls for s in t.seconds)) for side, t in timings.items()}


def _repeat(run: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        run()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; exits with 1 for what fails."""
    given = _parser().parse_args(arguments)
    sizes = {"width": given.width}
    if given.image_size:
        sizes["image_size"] = given.image_size
    rows = []
    try:
        if given.json is not None:
            check_place(given.json)
        counts = given.threads or [torch.get_num_threads()]
        for threads, batch in product(counts, given.batch or [1, 64]):
            print(f"threads {threads}, batch {batch}", file=sys.stderr)
            timings = measure(given.network, sizes, given.sparsity, batch, threads, given.rounds)
            rows.append((threads, batch, timings))
        if given.json is not None:
            write_json(given.json, _content(given, rows))
    except (DsgcError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    wide_console().print(_table(given, rows))


Row = tuple[int, int, dict[str, Timing]]


def _content(given: argparse.Namespace, rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "machine": describe_machine(),
        "network": given.network,
        "sparsity": given.sparsity,
        "rows": [
            {
                "threads": threads,
                "batch": batch,
                "seconds": {side: list(timing.seconds) for side, timing in timings.items()},
            }
            for threads, batch, timings in rows
        ],
    }


def _table(given: argparse.Namespace, rows: Sequence[Row]) -> Table:
    cells = []
    for threads, batch, timings in rows:
        milliseconds = [1000 * timings[side].median for side in SIDES]
        ratios = [
            format_ratio(
                timings[side].median, timings["artifact"].median, better="faster", worse="slower"
            )
            for side in SIDES[1:]
        ]
        cells.append((str(threads), str(batch), *(f"{ms:.2f} ms" for ms in milliseconds), *ratios))
    return comparison_table(
        f"A call of {given.network} at {given.sparsity:.0%}",
        ("threads", "batch", *SIDES, *(f"against {side}" for side in SIDES[1:])),
        cells,
        caption="Medians, in turn; search included. onnxruntime and eager run the dense network.",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A call of an artifact, beside other runtimes.")
    add = parser.add_argument
    add("--network", default="vgg8", choices=zoo.NAMES)
    add("--width", type=float, default=1.0, help="multiplies the channels")
    add("--image-size", type=int, help="height and width; the network's own by default")
    add("--sparsity", type=float, default=0.8)
    add("--batch", type=int, action="append", help="repeatable; 1 and 64 by default")
    add("--threads", type=int, action="append", help="repeatable; torch's number by default")
    add("--rounds", type=int, default=20, help="counted calls of each side")
    add("--json", type=Path, metavar="FILE", help="write everything to this file")
    return parser


if __name__ == "__main__":
    main()
