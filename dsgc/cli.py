"""The command line: `dsgc demo`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from dsgc.demo import DemoOptions, DemoResult

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class Backend(StrEnum):
    """The backends of `dsgc.compile`."""

    auto = "auto"
    tvm = "tvm"
    reference = "reference"


@app.callback()
def main() -> None:
    """Dynamic sparse training of PyTorch models."""


@app.command()
def demo(
    sparsity: Annotated[
        float, typer.Option(help="Fraction of neurons left out, between 0 and 1.")
    ] = 0.8,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 12,
    batch_size: Annotated[int, typer.Option(min=2, help="Images of a step.")] = 64,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of both networks; by default all cores.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each network.")] = 15,
    backend: Annotated[Backend, typer.Option(help="What runs the sparse network.")] = Backend.auto,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON and nothing else.")
    ] = False,
) -> None:
    """Train a small network on digits, dense and sparse, and print both side by side."""
    # torch takes seconds to import: --help does without it.
    import torch

    from dsgc.demo import DemoOptions
    from dsgc.errors import DsgcError

    if threads is not None:
        torch.set_num_threads(threads)
    options = DemoOptions(
        sparsity=sparsity,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        backend=backend.value,
        rounds=rounds,
    )
    try:
        result = _run_with_progress(options, Console(stderr=True, quiet=as_json))
    except DsgcError as error:
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(result.as_dict(), indent=2))
    else:
        Console().print(result.table())


def _run_with_progress(options: DemoOptions, console: Console) -> DemoResult:
    """Run the demonstration with one bar for each network."""
    from dsgc.demo import run

    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    texts = {"dense": "training dense", "sparse": "training sparse", "measure": "measuring both"}
    with Progress(*columns, console=console) as bars:
        tasks = {name: bars.add_task(text, start=False, total=None) for name, text in texts.items()}

        def report(name: str, done: int, total: int) -> None:
            task = bars.tasks[tasks[name]]
            if task.start_time is None:
                bars.start_task(task.id)
            bars.update(task.id, completed=done, total=total)

        return run(options, report)
