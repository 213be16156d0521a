"""The command line."""

from __future__ import annotations

import json
from enum import StrEnum
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dsgc.artifact_cli import (
    BlockOption,
    ClassesOption,
    ImageSizeOption,
    InputShapeOption,
    WidthOption,
    bench_artifact,
    doctor,
    errors_in_words,
    export,
    run,
    say_error,
    shape_of,
)
from dsgc.inspect_cli import explain, inspect

if TYPE_CHECKING:
    from dsgc.bench.workload import Workload
    from dsgc.demo import DemoOptions, DemoResult

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # the only one that wraps paragraphs anew
)

for _command in (explain, inspect, export, run, doctor):
    app.command()(_command)


class Backend(StrEnum):
    """The backends of `dsgc.compile`."""

    auto = "auto"
    tvm = "tvm"
    reference = "reference"


class Mode(StrEnum):
    """What `dsgc bench` measures."""

    train = "train"
    infer = "infer"
    both = "both"


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dsgc {version('dsgc')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="Print the version of dsgc and exit.",
        ),
    ] = False,
) -> None:
    """Dynamic sparse training of PyTorch models."""


@app.command()
def demo(
    sparsity: Annotated[
        float, typer.Option(help="Fraction of neurons left out, between 0 and 1.")
    ] = 0.8,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training images.")] = 12,
    batch_size: Annotated[int, typer.Option(min=2, help="Images of a step.")] = 64,
    threads: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Threads of both networks; by default all cores."),
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

    from dsgc.config import SparsityConfig
    from dsgc.demo import DemoOptions

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
    with errors_in_words():
        SparsityConfig(sparsity)  # before anything is drawn
        result = _run_with_progress(options, Console(stderr=True, quiet=as_json))
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


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network of dsgc.zoo, package.module:callable, or an artifact (*.dsgc).",
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 64,
    sparsity: Annotated[
        list[float] | None,
        typer.Option(help="Fraction of neurons left out, below 1; repeatable. By default 0.8."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option(min=1, max=1024, help="Of all sides; repeatable. By default all cores."),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="Training steps, inference, or both.")] = Mode.train,
    compiled: Annotated[bool, typer.Option(help="Measure torch.compile too.")] = True,
    rounds: Annotated[int, typer.Option(min=1, help="Counted steps of each side.")] = 10,
    warmup: Annotated[int, typer.Option(min=0, help="Steps before counting.")] = 2,
    width: WidthOption = None,
    image_size: ImageSizeOption = None,
    input_shape: InputShapeOption = None,
    classes: ClassesOption = None,
    backend: Annotated[Backend, typer.Option(help="What runs the sparse model.")] = Backend.auto,
    block: BlockOption = None,
    memory: Annotated[bool, typer.Option(help="Measure the memory of processes too.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything to this file.")
    ] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", help="Draw speed over sparsity, .png or .svg.")
    ] = None,
) -> None:
    """Measure a model dense and sparse, in turn: time, work and memory of a step.

    A callable takes no arguments and returns a torch.nn.Module; it needs --input-shape and
    --classes. The search and the optimizer are part of the step. Of an artifact it measures a
    call, and what each layer takes of it; --batch, --threads, --rounds and --json count there.
    """
    if model.endswith(".dsgc"):
        bench_artifact(Path(model), [batch], threads or [], rounds, json_file)
        return
    from dsgc.bench.runner import Options
    from dsgc.bench.session import run_bench
    from dsgc.bench.workload import Workload
    from dsgc.errors import ConfigError, DsgcError

    try:
        base = Workload(model, batch, input_shape=shape_of(input_shape), classes=classes)
        base = base.with_changes(width=width, image_size=image_size, block=block)
        whole = run_bench(
            _rows(base, mode, threads or [], sparsity or [base.sparsity]),
            Options(rounds, warmup, backend.value, compiled, memory),
            json_file=json_file,
            plot_file=plot_file,
        )
    except ConfigError as error:
        say_error(error)
        raise typer.Exit(2) from error
    except (DsgcError, OSError) as error:
        say_error(error)
        raise typer.Exit(1) from error
    if not whole:
        raise typer.Exit(1)


def _rows(
    base: Workload, mode: Mode, threads: list[int], sparsities: list[float]
) -> list[Workload]:
    """Every combination; those of one dense model side by side."""
    modes = [one.value for one in (Mode.train, Mode.infer) if mode in (one, Mode.both)]
    counts: list[int | None] = [*threads] or [None]
    return [
        base.with_changes(mode=kind, threads=count, sparsity=sparsity)
        for kind, count, sparsity in product(modes, counts, sparsities)
    ]
