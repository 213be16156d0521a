"""Measures workloads: `python -m benchmarks.run vgg8-b64-s80`, or `--list` to see them all."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from benchmarks.step import measure, table
from benchmarks.workloads import WORKLOADS, Workload

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None, *, network: str | None = None) -> None:
    """Parse `arguments`, measure, print.

    Args:
        arguments: those of the command line by default.
        network: measure this network of the zoo, without choosing rows by name.
    """
    options = _parse(arguments, network)
    if network is not None:
        chosen = [Workload(network)]
    elif options.list:
        for workload in WORKLOADS:
            print(workload.name)
        return
    else:
        chosen = [one for one in WORKLOADS if not options.names or one.name in options.names]
    results = []
    progress = Console(stderr=True)
    for row in chosen:
        workload = row.with_changes(
            batch=options.batch,
            sparsity=options.sparsity,
            threads=options.threads,
            width=options.width,
            image_size=options.image_size,
        )
        progress.print(f"measuring {workload.name} ...")
        result = measure(
            workload, rounds=options.rounds, warmup=options.warmup, backend=options.backend
        )
        results.append(result.as_dict())
        if not options.json:
            Console().print(table(result))
    if options.json:
        json.dump(results, sys.stdout, indent=2)
        print()


def _parse(arguments: Sequence[str] | None, network: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Training steps, dsgc beside eager PyTorch.")
    if network is None:
        names = [workload.name for workload in WORKLOADS]
        parser.add_argument("names", nargs="*", metavar="NAME", help="rows; all by default")
        parser.add_argument("--list", action="store_true", help="print the rows' names")
    parser.add_argument("--batch", type=int, help="images of a step")
    parser.add_argument("--sparsity", type=float, help="fraction of neurons left out")
    parser.add_argument("--threads", type=int, help="of both sides")
    parser.add_argument("--width", type=float, help="multiplies the network's channels")
    parser.add_argument("--image-size", type=int, help="height and width of the images")
    parser.add_argument("--rounds", type=int, default=10, help="counted steps of each side")
    parser.add_argument("--warmup", type=int, default=2, help="steps before counting")
    parser.add_argument("--backend", choices=("auto", "tvm", "reference"), default="auto")
    parser.add_argument("--json", action="store_true", help="print JSON to standard output")
    options = parser.parse_args(arguments)
    if network is None and (unknown := sorted(set(options.names) - set(names))):
        parser.error(f"no such row: {', '.join(unknown)}; there are: {', '.join(names)}")
    return options


if __name__ == "__main__":
    main()
