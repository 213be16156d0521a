"""Measures workloads: `python -m benchmarks.run vgg8-b64-s80`, or `--list` to see them all."""

from __future__ import annotations

import argparse
import sys
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path

from benchmarks.workloads import WORKLOADS
from dsgc.bench.runner import Options
from dsgc.bench.session import run_bench
from dsgc.bench.workload import Workload
from dsgc.errors import ConfigError, DsgcError

__all__ = ["main"]

_CHANGES = ("batch", "sparsity", "threads", "width", "image_size", "mode", "block")


def main(arguments: Sequence[str] | None = None, *, network: str | None = None) -> None:
    """Parse `arguments`, measure, print; exits with 2 for wrong ones, 1 where dsgc failed.

    Args:
        arguments: those of the command line by default.
        network: measure this network of the zoo, without choosing rows by name.
    """
    parser = _parser(network)
    options = parser.parse_args(arguments)
    if network is None and options.list:
        for workload in WORKLOADS:
            print(workload.name)
        return
    names = [workload.name for workload in WORKLOADS]
    chosen = list(WORKLOADS) if network is None else [Workload(network)]
    if network is None and options.names:
        if unknown := sorted(set(options.names) - set(names)):
            parser.error(f"no such row: {', '.join(unknown)}; there are: {', '.join(names)}")
        chosen = [workload for workload in WORKLOADS if workload.name in options.names]
    changes = {name: getattr(options, name) for name in _CHANGES}
    try:
        whole = run_bench(
            [workload.with_changes(**changes) for workload in chosen],
            Options(
                options.rounds, options.warmup, options.backend, options.compiled, options.memory
            ),
            json_file=options.json,
            plot_file=options.plot,
        )
    except ConfigError as error:
        parser.error(str(error))
    except (DsgcError, OSError) as error:
        sys.exit(f"error: {error}")
    if not whole:
        sys.exit(1)


def _parser(network: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Steps of dense networks beside those of dsgc.")
    add = parser.add_argument
    if network is None:
        add("names", nargs="*", metavar="NAME", help="rows; all by default")
        add("--list", action="store_true", help="print the rows' names")
    add("--batch", type=int, help="samples of a step")
    add("--sparsity", type=float, help="fraction of neurons left out")
    add("--threads", type=int, help="of all sides")
    add("--mode", choices=("train", "infer"), help="what a step is")
    add("--width", type=float, help="multiplies the network's channels")
    add("--image-size", type=int, help="height and width of the images")
    add("--block", type=int, help="channels selected together")
    add("--rounds", type=int, default=10, help="counted steps of each side")
    add("--warmup", type=int, default=2, help="steps before counting")
    add("--backend", choices=("auto", "tvm", "reference"), default="auto")
    add("--compiled", action=BooleanOptionalAction, default=True, help="measure torch.compile")
    add("--memory", action=BooleanOptionalAction, default=True, help="measure processes' memory")
    add("--json", type=Path, metavar="FILE", help="write everything to this file")
    add("--plot", type=Path, metavar="FILE", help="draw speed over sparsity, .png or .svg")
    return parser


if __name__ == "__main__":
    main()
