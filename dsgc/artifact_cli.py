"""The commands that write and run artifacts, and `dsgc doctor`."""

from __future__ import annotations

import json
import statistics
import time
import tokenize
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from dsgc.bench.workload import Workload
    from dsgc_runtime import Model

__all__ = [
    "AsJson",
    "BlockOption",
    "CheckpointOption",
    "ClassesOption",
    "ImageSizeOption",
    "InputShapeOption",
    "WidthOption",
    "bench_artifact",
    "doctor",
    "errors_in_words",
    "export",
    "load_checkpoint",
    "run",
    "say_error",
    "shape_of",
    "workload_of",
]

WidthOption = Annotated[
    float | None, typer.Option(help="Multiplies the channels of a zoo network.")
]
ImageSizeOption = Annotated[
    int | None, typer.Option(min=1, help="Height and width for a zoo network.")
]
InputShapeOption = Annotated[
    str | None, typer.Option(help="Of one sample, such as 3,32,32; for a callable.")
]
ClassesOption = Annotated[int | None, typer.Option(min=1, help="Outputs of the model.")]
BlockOption = Annotated[int | None, typer.Option(help="Channels selected together.")]
CheckpointOption = Annotated[
    Path | None, typer.Option(help="A state_dict, or a dict with one as 'model'.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_Artifact = Annotated[Path, typer.Argument(metavar="ARTIFACT", help="What `dsgc export` wrote.")]


def say_error(error: Exception) -> None:
    """One line on standard error."""
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Exit with 2 for a wrong setting and with 1 for what fails, and say why."""
    from dsgc.errors import ConfigError, DsgcError
    from dsgc_runtime import ArtifactError, InputError

    try:
        yield
    except BrokenPipeError:
        raise  # who reads has seen enough: that is no error to tell of
    except ConfigError as error:
        say_error(error)
        raise typer.Exit(2) from error
    except (DsgcError, ArtifactError, InputError, OSError, MemoryError) as error:
        say_error(error)
        raise typer.Exit(1) from error


def shape_of(text: str | None) -> tuple[int, ...] | None:
    """`3,32,32` as numbers."""
    from dsgc.errors import ConfigError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"input shape {text!r} is not possible: numbers and commas, such as 3,32,32",
            "input_shape",
        ) from error


def workload_of(
    model: str,
    sparsity: float,
    batch: int,
    width: float | None,
    image_size: int | None,
    input_shape: str | None,
    classes: int | None,
    block: int | None,
) -> Workload:
    """The model and data that a command's options mean; None is the workload's own value."""
    from dsgc.bench.workload import Workload

    base = Workload(model, batch, sparsity, input_shape=shape_of(input_shape), classes=classes)
    return base.with_changes(width=width, image_size=image_size, block=block)


def export(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A network of dsgc.zoo, or package.module:callable."),
    ],
    out: Annotated[
        Path, typer.Argument(help="The file to write, usually *.dsgc; *.onnx makes an ONNX file.")
    ],
    checkpoint: CheckpointOption = None,
    sparsity: Annotated[float, typer.Option(help="Fraction of neurons left out.")] = 0.8,
    batch: Annotated[int, typer.Option(min=1, help="Samples to choose kernels for.")] = 64,
    fixed_batch: Annotated[bool, typer.Option(help="Take this batch size only.")] = False,
    target: Annotated[
        str | None,
        typer.Option(help="avx512-vnni, avx512, avx2, x86-64 or aarch64; else this machine."),
    ] = None,
    width: WidthOption = None,
    image_size: ImageSizeOption = None,
    input_shape: InputShapeOption = None,
    classes: ClassesOption = None,
    block: BlockOption = None,
) -> None:
    """Write a trained model as one file that runs without torch and TVM."""
    with errors_in_words():
        import dsgc
        from dsgc.errors import ConfigError

        to_onnx = out.suffix.lower() == ".onnx"
        if to_onnx and target is not None:
            raise ConfigError("an ONNX file runs anywhere: leave --target out", "target")
        base = workload_of(model, sparsity, batch, width, image_size, input_shape, classes, block)
        sparse = dsgc.compile(base.build(), config=base.config())
        inputs, _ = base.data()
        if checkpoint is not None:
            load_checkpoint(sparse, checkpoint)
        console = Console(stderr=True)
        with console.status(f"compiling {base.label}"):
            if to_onnx:
                dsgc.export_onnx(sparse, out, inputs, dynamic_batch=not fixed_batch)
            else:
                dsgc.export(sparse, out, inputs, target=target, dynamic_batch=not fixed_batch)
        console.print(f"{escape(str(out))}: {out.stat().st_size / 1e6:.1f} MB", highlight=False)


def load_checkpoint(sparse: Any, place: Path) -> None:
    """Load a checkpoint into a compiled model; ConfigError if it does not fit."""
    import pickle

    import torch

    from dsgc.errors import ConfigError

    try:
        state = torch.load(place, map_location="cpu", weights_only=True)
        sparse.load_state_dict(state.get("model", state))
    except (
        RuntimeError, AttributeError, TypeError, EOFError, pickle.UnpicklingError
    ) as error:  # fmt: skip
        reason = str(error) or "it is empty, or ends too early"
        raise ConfigError(f"{place} does not fit the model: {reason}", "checkpoint") from error


def run(
    artifact: _Artifact,
    inputs: Annotated[list[Path], typer.Argument(help="An .npy file for every input.")],
    out: Annotated[
        Path | None, typer.Option(help="Where to write the result, .npy, or .npz for several.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="By default all cores.")
    ] = None,
) -> None:
    """Run an artifact on arrays."""
    with errors_in_words():
        import numpy as np

        import dsgc_runtime

        model = dsgc_runtime.load(artifact, threads)
        found = model(*(_array(place) for place in inputs))
        results = found if isinstance(found, tuple) else (found,)
        names = [port.name for port in model.outputs]
        for name, result in zip(names, results, strict=True):
            print(f"{name}: {result.dtype} {list(result.shape)}")
        if out is None:
            for result in results:
                print(np.array2string(result, threshold=200, precision=4))
        elif len(results) == 1:
            with out.open("wb") as file:
                np.save(file, results[0])
        else:
            with out.open("wb") as file:
                arrays: dict[str, Any] = dict(zip(names, results, strict=True))
                np.savez(file, **arrays)


def _array(place: Path) -> Any:
    import numpy as np

    from dsgc_runtime import InputError

    wrong = (ValueError, EOFError, SyntaxError, tokenize.TokenError, zipfile.BadZipFile)
    try:
        found = np.load(place, allow_pickle=False)
    except wrong as error:
        raise InputError(f"{place} is not an .npy file of numbers") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{place} holds several arrays: give an .npy file for every input")
    return found


def bench_artifact(
    place: Path, batches: list[int], threads: list[int], rounds: int, as_json: Path | None
) -> None:
    """`dsgc bench` of an artifact: the time of a call, and where it goes."""
    with errors_in_words():
        import numpy as np

        import dsgc_runtime
        from dsgc.files import check_place, write_json

        if as_json is not None:
            check_place(as_json)
        model = dsgc_runtime.load(place)
        rows = []
        if (only := model.inputs[0].shape[0]) is not None:
            batches = [only]  # it was exported for that
        counts: list[int | None] = [*threads] or [None]
        for count, batch in product(counts, batches):
            model.threads = count
            shapes = [
                [batch if extent is None else extent for extent in port.shape]
                for port in model.inputs
            ]
            generator = np.random.default_rng(0)
            inputs = [generator.standard_normal(shape, np.float32) for shape in shapes]
            rows.append(_timed(model, inputs, batch, count, rounds))
        if as_json is not None:
            write_json(as_json, rows)
        console = Console()
        for row in rows:
            console.print(_timing_table(row))


def _timed(
    model: Model, inputs: list[Any], batch: int, threads: int | None, rounds: int
) -> dict[str, Any]:
    times = []
    for _ in range(rounds + 2):
        begun = time.perf_counter()
        model(*inputs)
        times.append(time.perf_counter() - begun)
    layers = [vars(layer) for layer in model.profile(*inputs)]
    median = statistics.median(times[2:])
    return {"batch": batch, "threads": threads, "seconds": median, "layers": layers}


def _timing_table(row: dict[str, Any]) -> Table:
    threads = row["threads"] or "all"
    table = Table(
        *("layer", "ms", "share", "sparsity", "MB touched"),
        box=None,
        title=f"batch {row['batch']}, threads {threads}: {1e3 * row['seconds']:.2f} ms a call",
    )
    for layer in row["layers"]:
        sparsity = "" if layer["sparsity"] is None else f"{layer['sparsity']:.0%}"
        table.add_row(
            escape(layer["name"]),
            f"{1e3 * layer['seconds']:.2f}",
            f"{layer['share']:.0%}",
            sparsity,
            f"{layer['bytes'] / 1e6:.1f}",
        )
    return table


def doctor(as_json: AsJson = False) -> None:
    """Check what dsgc needs; exits with 1 if something is missing."""
    from dsgc.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([finding.json() for finding in findings], indent=2))
    else:
        table = Table("", "what", "found", "to mend it", box=None)
        marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
        for one in findings:
            table.add_row(marks[one.state], one.name, escape(one.said), escape(one.remedy))
        Console().print(table)
    if any(finding.state == "missing" for finding in findings):
        raise typer.Exit(1)
