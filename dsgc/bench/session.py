"""A bench from the command line: progress on stderr, tables on stdout, files if asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from dsgc.bench.machine import describe_machine
from dsgc.bench.plot import check_plot, draw_ratios
from dsgc.bench.report import tables, verdicts
from dsgc.bench.results import Row
from dsgc.bench.runner import Options, measure
from dsgc.bench.workload import Workload
from dsgc.files import check_place, write_json

__all__ = ["run_bench", "wide_console"]

_WIDTH = 200  # of what goes into a file or a pipe


def run_bench(
    workloads: Sequence[Workload],
    options: Options,
    *,
    json_file: Path | None = None,
    plot_file: Path | None = None,
) -> bool:
    """Measure, print, and write the files.

    The JSON file is written anew after every row, so that stopping a long bench loses one row.

    Args:
        workloads: the rows.
        options: how to measure them.
        json_file: everything, as JSON.
        plot_file: the picture, .png or .svg.

    Returns:
        Whether dsgc could be measured in every row.

    Raises:
        DsgcError: nothing is measured, or no further: a wrong setting or a missing package.
        OSError: a file cannot be written.
    """
    if json_file is not None:
        check_place(json_file)
    if plot_file is not None:
        check_plot(plot_file)
    rows: list[Row] = []
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, MofNCompleteColumn(), TimeElapsedColumn(), console=console) as bars:
        task = bars.add_task("preparing", total=len(workloads))
        for row in measure(workloads, options, lambda text: bars.update(task, description=text)):
            rows.append(row)
            bars.advance(task)
            bars.console.print(f"measured {row.workload.name}", markup=False, highlight=False)
            if json_file is not None:
                write_json(json_file, _content(rows, options))
        bars.update(task, description="done")
    _show(rows, options)
    if plot_file is not None:
        draw_ratios(rows, plot_file)
    return all(row.ratio is not None for row in rows)


def wide_console() -> Console:
    """Standard output; wide enough for a table where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _show(rows: Sequence[Row], options: Options) -> None:
    console = wide_console()
    machine = describe_machine()
    where = f"{machine['cpu']}, {machine['usable_cores']} cores, torch {machine['torch']}"
    console.print(Text(f"{where}, dsgc {machine['dsgc']}"))
    for table in tables(rows, rounds=options.rounds, memory=options.memory):
        console.print(table)
    for line in verdicts(rows):
        console.print(Text(line))


def _content(rows: Sequence[Row], options: Options) -> dict[str, Any]:
    threads = sorted({row.threads for row in rows})
    return {
        "machine": {**describe_machine(), "threads": threads},
        "options": asdict(options),
        "rows": [row.as_dict() for row in rows],
    }
