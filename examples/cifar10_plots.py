"""Draws runs of cifar10.py: accuracy over epochs and over training time; of every sparse layer the
achieved sparsity and the use of its blocks.

python examples/cifar10_plots.py runs/dense runs/sparse --out both.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw", "main"]


def draw(runs: dict[str, Any], out: Path) -> None:
    """A picture of `runs`, results by name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    epochs_axis, time_axis, sparsity_axis, load_axis = grid.flat
    for i, (name, run) in enumerate(runs.items()):
        style: Any = {"label": name, "color": f"C{i}", "marker": "."}
        epochs = run["epochs"]
        accuracy = [100 * epoch["test_accuracy"] for epoch in epochs]
        epochs_axis.plot([epoch["epoch"] for epoch in epochs], accuracy, **style)
        time_axis.plot([epoch["seconds"] / 60 for epoch in epochs], accuracy, **style)
        layers = epochs[-1]["layers"]
        if layers:
            names, values = list(layers), layers.values()
            sparsity_axis.plot(names, [100 * layer["sparsity"] for layer in values], **style)
            load_axis.plot(names, [layer["busiest"] for layer in values], **style)
    epochs_axis.set(xlabel="epoch", ylabel="test accuracy, %", title="Accuracy over epochs")
    time_axis.set(xlabel="minutes of training", ylabel="test accuracy, %", title="Over time")
    sparsity_axis.set(ylabel="neurons not computed, %", title="Achieved sparsity, last epoch")
    load_axis.set(ylabel="load of the busiest block / mean", title="Use of blocks, last epoch")
    for axis in grid.flat:
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    for axis in (sparsity_axis, load_axis):
        axis.tick_params("x", rotation=45)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and draw; exits with 2 if a run cannot be read."""
    parser = argparse.ArgumentParser(description="Draw runs of cifar10.py beside each other.")
    parser.add_argument("runs", nargs="+", help="folders that --out of cifar10.py named")
    parser.add_argument("--out", default="cifar10.png")
    given = parser.parse_args(arguments)
    runs = {}
    for folder in given.runs:
        try:
            content = json.loads((Path(folder) / "results.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            parser.error(f"{folder} holds no results: {error}")
        if not content["epochs"]:
            parser.error(f"{folder} has no finished epoch")
        runs[Path(folder).name] = content
    draw(runs, Path(given.out))


if __name__ == "__main__":
    main()
