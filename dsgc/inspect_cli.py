"""The commands that look: at what compiling would do, did, and left in an artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsgc.artifact_cli import (
    AsJson,
    BlockOption,
    CheckpointOption,
    ClassesOption,
    ImageSizeOption,
    InputShapeOption,
    WidthOption,
    errors_in_words,
    load_checkpoint,
    workload_of,
)

if TYPE_CHECKING:
    from dsgc.bench.workload import Workload
    from dsgc.inspect.explain import Explanation
    from dsgc.inspect.report import Report
    from dsgc.module import SparseModule

__all__ = ["explain", "inspect"]

_Model = Annotated[
    str,
    typer.Argument(metavar="MODEL", help="A network of dsgc.zoo, or package.module:callable."),
]
_Sparsity = Annotated[float, typer.Option(help="Fraction of neurons left out.")]
_Batch = Annotated[int, typer.Option(min=1, help="Samples of a call.")]


def explain(
    model: _Model,
    sparsity: _Sparsity = 0.8,
    batch: _Batch = 64,
    width: WidthOption = None,
    image_size: ImageSizeOption = None,
    input_shape: InputShapeOption = None,
    classes: ClassesOption = None,
    block: BlockOption = None,
    markdown: Annotated[bool, typer.Option(help="Print Markdown instead of a table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say which layers compiling would make sparse, why, and what that should give."""
    with errors_in_words():
        import dsgc

        _refuse({"--markdown": markdown, "--json": as_json}, "each is a form of its own")
        work = workload_of(model, sparsity, batch, width, image_size, input_shape, classes, block)
        found = dsgc.explain(work.build(), config=work.config(), example_inputs=work.data()[0])
        _print(found, markdown, as_json)


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A network of dsgc.zoo, package.module:callable, or an artifact (*.dsgc).",
        ),
    ],
    html: Annotated[
        Path | None, typer.Option(help="Write a page that shows graphs, layers and kernels.")
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(help="Print a graph: semantic, lowered, dense, or the name of a pass."),
    ] = None,
    measure: Annotated[
        bool, typer.Option(help="Measure every layer beside the dense one; takes a while.")
    ] = False,
    firings: Annotated[
        Path | None, typer.Option(help="Selections that FiringRecorder saved, for the page.")
    ] = None,
    checkpoint: CheckpointOption = None,
    sparsity: _Sparsity = 0.8,
    batch: _Batch = 64,
    width: WidthOption = None,
    image_size: ImageSizeOption = None,
    input_shape: InputShapeOption = None,
    classes: ClassesOption = None,
    block: BlockOption = None,
    as_json: AsJson = False,
) -> None:
    """Show what the compiler made of a model, or what an artifact holds (nothing of it is run).

    For an artifact only --html, --graph lowered and --json count.
    """
    with errors_in_words():
        _refuse({"--graph": graph, "--json": as_json}, "a graph is printed as text")
        if html is None:
            _refuse({"--graph": graph, "--measure": measure}, "a graph is printed alone")
        if what.endswith(".dsgc"):
            _inspect_artifact(Path(what), html, graph, as_json)
            return
        work = workload_of(what, sparsity, batch, width, image_size, input_shape, classes, block)
        _inspect_model(work, html, graph, measure, firings, checkpoint, as_json)


def _refuse(options: dict[str, object], why: str) -> None:
    """Two options of which one would be passed over."""
    from dsgc.errors import ConfigError

    if all(options.values()):
        first, second = options
        raise ConfigError(f"{first} and {second} do not go together: {why}", first)


def _inspect_model(
    work: Workload,
    html: Path | None,
    graph: str | None,
    measure: bool,
    firings: Path | None,
    checkpoint: Path | None,
    as_json: bool,
) -> None:
    import dsgc
    from dsgc.files import check_place
    from dsgc.inspect.firing import load_firings

    if html is not None:
        check_place(html)
    pictures = load_firings(firings) if firings is not None else {}
    console = Console(stderr=True)
    inputs, _ = work.data()
    with console.status(f"compiling {work.label}"):
        sparse = dsgc.compile(work.build(), config=work.config())
        if checkpoint is not None:
            load_checkpoint(sparse, checkpoint)
        sparse.train()._prepare((inputs,))
    if graph is not None:
        print(sparse.graph(graph).text(), end="")
        if html is None:
            return
    rows: Explanation | Report
    if measure:
        with console.status("measuring every layer, sparse and dense in turn"):
            rows = sparse.report(inputs)
    else:
        rows = dsgc.explain(sparse, config=work.config(), example_inputs=inputs)
    if graph is None:
        _print(rows, False, as_json)
    if html is not None:
        with console.status("writing the page; the sources of kernels are generated anew"):
            _write_page(sparse, rows, pictures, html)
        console.print(escape(f"{html}: {html.stat().st_size / 1e6:.1f} MB"), highlight=False)


def _write_page(
    sparse: SparseModule, rows: Explanation | Report, pictures: dict[str, Any], place: Path
) -> None:
    from dsgc.files import write_text
    from dsgc.inspect.build_page import page_of
    from dsgc.inspect.render_page import render_page

    write_text(place, render_page(page_of(sparse, rows.table(), pictures)))


def _print(rows: Explanation | Report, markdown: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows.to_dict(), indent=2))
    elif markdown:
        print(rows.markdown(), end="")
    else:
        Console().print(rows)


def _inspect_artifact(place: Path, html: Path | None, graph: str | None, as_json: bool) -> None:
    from dsgc.errors import UnknownGraphError
    from dsgc.files import write_text
    from dsgc_runtime.archive import open_archive

    if graph not in (None, "lowered"):
        raise UnknownGraphError(f"an artifact has no graph {graph!r}, only 'lowered'")
    archive = open_archive(place)
    if html is not None:
        from dsgc.inspect.artifact_page import page_of_artifact
        from dsgc.inspect.render_page import render_page

        write_text(html, render_page(page_of_artifact(archive, place)))
    about = _about(archive.manifest, place)
    if as_json:
        print(json.dumps(about, indent=2))
        return
    if graph is not None:
        print(archive.graph, end="")
        return
    console = Console()
    console.print(
        f"format {about['format']}, written by dsgc {about['dsgc']} for {about['target']} "
        f"({about['machine']}), {about['bytes'] / 1e6:.1f} MB",
        highlight=False,
    )
    for kind in ("inputs", "outputs"):
        for port in about[kind]:
            console.print(f"{kind[:-1]} {port}", highlight=False, markup=False)
    console.print(_layer_table(about["layers"]))


def _about(manifest: Any, place: Path) -> dict[str, Any]:
    from dsgc_runtime.manifest import FORMAT

    def text(port: Any) -> str:
        shape = ", ".join(str(extent) for extent in port.view.shape)
        return f"{port.name}: {port.view.dtype} [{shape}]"

    return {
        "format": FORMAT,
        "dsgc": manifest.dsgc,
        "target": manifest.target,
        "machine": manifest.machine,
        "features": list(manifest.features),
        "dynamic_batch": manifest.dynamic,
        "bytes": place.stat().st_size,
        "inputs": [text(port) for port in manifest.inputs],
        "outputs": [text(port) for port in manifest.outputs],
        "kernel_calls": len(manifest.program),
        "layers": [vars(layer) for layer in manifest.layers],
    }


def _layer_table(layers: list[dict[str, Any]]) -> Table:
    table = Table("layer", "sparsity", "dense multiply-adds", "why", box=None)
    for layer in layers:
        sparsity = f"{layer['sparsity']:.0%}" if layer["sparse"] else "dense"
        macs = f"{layer['multiply_adds']:,}"
        table.add_row(escape(layer["name"]), sparsity, macs, escape(layer["reason"]))
    return table
