"""How much of the best blocks' activations a search finds, by its number of dimensions.

    python examples/cifar10_search.py DATA runs/sparse

For every sparse layer of a run of cifar10.py, on test images: the sum of the true scores of the
blocks that an estimate selects, over that of the blocks that the true scores select.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from cifar10_data import DataError, load, normalized
from cifar10_run import Options, Run, reopen
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

import dsgc
from dsgc.select import Selector

__all__ = ["found", "main"]

_IMAGES = 128
_PARTS = (0.25, 0.5, 1.0, 2.0)  # of the dimensions that the layer has


def found(selector: Selector, x: Tensor) -> dict[str, list[float]]:
    """By search, the part of the best activations that is found for maps x with each of the numbers
    of dimensions; a single part where that does not matter."""
    size, dimensions = selector.winners, selector.reduced[1]
    truth = _other(selector, selector="oracle").scores(x)
    best = truth.topk(size, 1).values.sum()

    def part(scores: Tensor) -> float:
        return float(truth.gather(1, scores.topk(size, 1).indices).sum() / best)

    generator = torch.Generator().manual_seed(0)
    parts = {"random": [part(torch.rand(truth.shape, generator=generator).to(truth))]}
    taps = selector.kernel[0] * selector.kernel[1]
    for name in ("drs", "svd"):
        wanted = [max(1, int(dimensions * factor)) * taps for factor in _PARTS]
        others = [_other(selector, selector=name, reduced_dimension=one) for one in wanted]
        parts[name] = [part(other.scores(x)) for other in others]
    return parts


def _other(model: Selector, **settings: Any) -> Selector:
    """A selector for the layer of `model`, with other settings."""
    window = {name: getattr(model, name) for name in ("kernel", "stride", "padding", "dilation")}
    changed = replace(model.settings, **settings)
    made = Selector(model.layer, settings=changed, seed=0, in_channels=model.in_channels, **window)
    if model.norm is not None:
        made.rank_after(model.norm)
    return made


def _inputs(run: Run) -> Iterator[tuple[Selector, Tensor]]:
    """Every selector of the run's model with what it is asked about, for test images."""
    if not isinstance(run.model, dsgc.SparseModule):
        raise ValueError("the run is not sparse")
    images = normalized(run.data.test_images[:_IMAGES], run.device)
    run.model.eval()(images)
    seen: list[tuple[Selector, Tensor]] = []
    graph = run.model.semantic_graph
    for module in graph.modules():
        if isinstance(module, Selector):
            module.register_forward_pre_hook(lambda m, inputs: seen.append((m, inputs[0])))
    graph(images)
    yield from seen


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; exits with 2 if the run or the data cannot be read."""
    parser = argparse.ArgumentParser(description="What searches find in a run of cifar10.py.")
    parser.add_argument("data", help="what cifar10.py reads")
    parser.add_argument("run", help="folder that --out of cifar10.py named")
    given = parser.parse_args(arguments)
    folder = Path(given.run)
    try:
        options = Options(**json.loads((folder / "results.json").read_text())["options"])
        data = load(Path(given.data)).limited(options.batch, _IMAGES)
        inputs = list(_inputs(reopen(folder, options, data, torch.device("cpu"))))
    except (DataError, OSError, TypeError, KeyError, ValueError) as error:
        parser.error(f"{folder}: {error}")
    table = Table(
        Column("layer", no_wrap=True),
        "winners",
        "dimensions",
        "search",
        *(f"{part:g} x" for part in _PARTS),
    )
    for selector, x in inputs:
        what = selector.settings.name, f"{selector.winners} of {selector.blocks}"
        for search, parts in found(selector, x).items():
            shown = (f"{part:.1%}" for part in parts)
            table.add_row(*what, str(selector.reduced[1]), search, *shown)
    Console().print(table)


if __name__ == "__main__":
    main()
