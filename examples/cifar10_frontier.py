"""Accuracy against speed: what runs of cifar10.py came to, beside the time of a step of each.

    python examples/cifar10_frontier.py DATA runs/dense runs/80 runs/90 --out frontier

Training steps and inference of all runs are timed in one process, in turn, with the parameters that
the runs ended with: search, selection and optimizer included. A dense run that was trained under
autocast is timed in float32 as well. The table goes to `frontier.md`, what it is made of to
`frontier.json`, the picture to `frontier.png`. A run is on the frontier if no other has both a
better accuracy and a shorter time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from cifar10_data import Cifar10, DataError, load, normalized
from cifar10_run import LOOKED_AT, Options, Run, reopen

import dsgc
from dsgc.files import write_json, write_whole
from dsgc.measure import Timing, TrainingStep, interleaved

__all__ = ["Point", "main", "on_frontier", "table"]


@dataclass(frozen=True)
class Point:
    """A run with its times.

    Attributes:
        name: the run's folder, and how it was timed where that is not how it was trained.
        accuracy: on test images in the end, from 0 to 1.
        multiply_adds: of the inference of one image, in float32.
        search: of its search, on 8-bit integers.
        step: seconds of a training step of the run's batch.
        inference: seconds of a forward pass of the same batch in eval mode.
    """

    name: str
    accuracy: float
    multiply_adds: float | None
    search: float | None
    step: float
    inference: float


@dataclass(frozen=True)
class Timed:
    """A run and how it is timed.

    Attributes:
        run: as it ended.
        results: what it wrote.
        float32: without the autocast that it was trained under.
    """

    run: Run
    results: Any
    float32: bool = False


_TIMES: Mapping[str, Callable[[Point], float]] = MappingProxyType(
    {"Training step": lambda point: point.step, "Inference": lambda point: point.inference}
)


def on_frontier(points: Sequence[Point], time: Callable[[Point], float]) -> set[str]:
    """Names of the points that no other beats in accuracy and time."""
    return {
        point.name
        for point in points
        if not any(
            other.accuracy >= point.accuracy
            and time(other) <= time(point)
            and (other.accuracy, time(other)) != (point.accuracy, time(point))
            for other in points
        )
    }


def table(points: Sequence[Point]) -> str:
    """The points as Markdown, best accuracy first; times on a frontier are bold."""
    step, inference = (on_frontier(points, time) for time in _TIMES.values())
    lines = [
        "| run | test accuracy, % | multiply-adds an image, M | of the search, M, 8-bit "
        "| training step, ms | inference, ms |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for point in sorted(points, key=lambda one: -one.accuracy):
        times = (
            f"**{1000 * seconds:.0f}**" if point.name in best else f"{1000 * seconds:.0f}"
            for seconds, best in ((point.step, step), (point.inference, inference))
        )
        counts = (
            "" if count is None else f"{count / 1e6:.1f}"
            for count in (point.multiply_adds, point.search)
        )
        cells = (point.name, f"{100 * point.accuracy:.2f}", *counts, *times)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def measure(runs: Mapping[str, Timed], rounds: int) -> tuple[list[Point], dict[str, Timing]]:
    """The points of the runs, and every counted second: of steps and then of inference.

    A training step changes parameters, so it is done at a rate of zero.
    """
    steps: dict[str, Callable[[], object]] = {}
    passes: dict[str, Callable[[], object]] = {}
    for name, timed in runs.items():
        run = timed.run
        batch = run.options.batch
        images = normalized(run.data.train_images[:batch], run.device)
        labels = run.data.train_labels[:batch].to(run.device)
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0
        once = TrainingStep(run.model, run.optimizer, F.cross_entropy, images, labels)
        steps[name] = _in_mode(timed, once, training=True)
        passes[name] = _in_mode(timed, partial(_infer, run, images), training=False)
    trained = interleaved(steps, rounds=rounds)
    inferred = interleaved(passes, rounds=rounds)
    points = []
    for name, timed in runs.items():
        accuracy = timed.results["epochs"][-1]["test_accuracy"]
        counts = timed.results["multiply_adds"]
        counted = len(timed.run.data.test_labels[:LOOKED_AT])
        work = [counts[key] / counted if counts else None for key in ("done", "search")]
        times = trained[name].median, inferred[name].median
        points.append(Point(name, accuracy, work[0], work[1], *times))
    seconds = {f"{name}, step": one for name, one in trained.items()}
    return points, seconds | {f"{name}, inference": one for name, one in inferred.items()}


def _in_mode(timed: Timed, do: Callable[[], object], *, training: bool) -> Callable[[], object]:
    def act() -> None:
        if timed.run.model.training != training:
            timed.run.model.train(training)
        with contextlib.nullcontext() if timed.float32 else timed.run.precision():
            do()

    return act


@torch.no_grad()
def _infer(run: Run, images: torch.Tensor) -> None:
    run.model(images)


def _read(folder: Path, data: Cifar10, device: torch.device) -> dict[str, Timed]:
    """A run as it ended, by name; the same in float32 if it was trained under autocast."""
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    if not results["epochs"]:
        raise ValueError(f"{folder} has no finished epoch")
    options = Options(**results["options"])
    limited = data.limited(options.train_images, options.test_images)
    run = reopen(folder, options, limited, device)
    found = {folder.name: Timed(run, results)}
    if options.bf16 and not options.sparsity:
        found[f"{folder.name}, float32"] = Timed(run, results, float32=True)
    return found


def draw(points: Sequence[Point], place: Path) -> None:
    """Accuracy over the time of a training step (left) and of inference; lines are frontiers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axes, (title, time) in zip(figure.subplots(1, 2), _TIMES.items(), strict=True):
        best = on_frontier(points, time)
        for number, point in enumerate(points):
            marker = "o" if point.name in best else "x"
            place_of = (1000 * time(point), 100 * point.accuracy)
            axes.scatter(*place_of, marker=marker, color=f"C{number % 10}", label=point.name)
        line = sorted((1000 * time(p), 100 * p.accuracy) for p in points if p.name in best)
        axes.plot(*zip(*line, strict=True), color="grey", linewidth=1, zorder=0)
        axes.set(title=title, xlabel="ms a batch", ylabel="test accuracy, %")
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    write_whole(place, lambda scratch: figure.savefig(scratch, format="png", dpi=110))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write; exits with 2 if a run cannot be read."""
    parser = argparse.ArgumentParser(description="Time runs of cifar10.py beside each other.")
    parser.add_argument("data", help="what cifar10.py reads")
    parser.add_argument("runs", nargs="+", help="folders that --out of cifar10.py named")
    parser.add_argument("--out", default="frontier", help="files to write, without an ending")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    runs: dict[str, Timed] = {}
    try:
        data = load(Path(given.data))
        for folder in given.runs:
            print(f"{folder}:", file=sys.stderr, flush=True)
            runs |= _read(Path(folder), data, device)
    except (DataError, dsgc.DsgcError, ValueError, TypeError, KeyError, OSError) as error:
        parser.error(f"{error}" if str(error) else type(error).__name__)
    points, seconds = measure(runs, given.rounds)
    out = Path(given.out)
    text = table(points)
    write_whole(out.with_suffix(".md"), lambda scratch: scratch.write_text(text, encoding="utf-8"))
    content = {
        "threads": torch.get_num_threads(),
        "points": [asdict(point) for point in points],
        "seconds": {name: timing.seconds for name, timing in seconds.items()},
    }
    write_json(out.with_suffix(".json"), content)
    draw(points, out.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
