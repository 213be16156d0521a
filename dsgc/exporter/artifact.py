"""Writes a compiled model as an artifact: one file that runs without torch and TVM."""

from __future__ import annotations

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from dsgc.codegen.target import CpuTarget, host_target, named_target
from dsgc.errors import ConfigError, ExportError, TraceError
from dsgc.exporter.link import link_kernels, machine_of, required_features
from dsgc.files import check_place
from dsgc.module import SparseModule
from dsgc.passes.patterns import has_hooks
from dsgc.program import Program as Graphs
from dsgc.programs.emit import emit
from dsgc.programs.fold_norms import fold_norms
from dsgc.programs.program import Emitted
from dsgc_runtime.archive import MOST_MANIFEST
from dsgc_runtime.manifest import FORMAT, MOST_BUFFERS

__all__ = ["checked", "export", "graphs_of"]

_MOMENT = (1980, 1, 1, 0, 0, 0)  # of every member: equal models make equal bytes


def export(
    sparse: nn.Module,
    path: str | Path,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    target: str | CpuTarget | None = None,
    dynamic_batch: bool = True,
) -> Path:
    """Write a compiled model as an artifact for `dsgc_runtime`, in eval mode.

    The artifact holds native code: who loads it trusts who wrote it.

    Args:
        sparse: what `dsgc.compile` gave back, trained or loaded; it is left as it is.
        path: the file, usually `*.dsgc`; it appears complete or not at all.
        example_inputs: positional inputs, float32 [N, C, H, W] or [N, C]. Kernels are chosen for
            their batch size.
        target: "avx512-vnni", "avx512", "avx2", "x86-64" or "aarch64", or a target of your own
            (docs/add-a-target.md); None is this machine.
        dynamic_batch: whether the artifact takes any batch size, or that of the example only.

    Returns:
        The path.

    Raises:
        ConfigError: `sparse`, `path`, `example_inputs` or `target` is not possible.
        InputError: the model does not take these inputs.
        ExportError: the model does something that an artifact cannot hold; says where.
        KernelError: the kernels cannot be compiled.
        OSError: the file cannot be written.
    """
    module, place = checked(sparse, path)
    try:
        named = named_target(target) if isinstance(target, str) else target
    except ValueError as error:
        raise ConfigError(str(error), "target") from error
    if not isinstance(named, (CpuTarget, type(None))):
        raise ConfigError(f"target must be a name or a CpuTarget, not {named!r}", "target")
    if not isinstance(dynamic_batch, bool):
        raise ConfigError(f"dynamic_batch must be True or False, not {dynamic_batch!r}", "export")
    inputs = checked_inputs(example_inputs)
    if not dynamic_batch and not len(inputs[0]):
        raise ConfigError(
            "an artifact for batches of no sample: give an example of the size that it is for",
            "example_inputs",
        )
    cpu = named or host_target()
    with module.in_eval_mode(*inputs):
        graphs, namespace = graphs_of(module, inputs)
        if namespace != "dsgc_cpu":
            module._engine.backend.require_kernels()
            raise ExportError(
                f'backend="{module.backend}" ran on these inputs: an artifact is made of generated '
                "kernels; move the model and its inputs to the CPU in float32, and compile with "
                'backend="auto"'
            )
        check_batch(graphs, dynamic_batch)
        names = [name for name, _ in module._dense[0].named_modules()]
        lowered = fold_norms(graphs.lowered("dsgc_cpu"))
        emitted = emit(lowered, inputs, cpu, names)
    text = str(lowered.graph) + "\n"
    batch = {"dynamic": dynamic_batch, "example": int(inputs[0].shape[0])}
    layers = _layers(module, emitted.sparsity)
    manifest = _manifest(emitted, cpu, batch, layers)
    families = emitted.program.families.values()
    _write(
        place,
        manifest,
        lambda file: link_kernels(families, named, file),
        emitted.program.constants,
        text,
    )
    return place


def checked(sparse: nn.Module, path: str | Path) -> tuple[SparseModule, Path]:
    """The module and the place to write to, if both are possible.

    Raises:
        ConfigError: they are not.
    """
    if not isinstance(sparse, SparseModule):
        raise ConfigError(
            f"export takes what dsgc.compile gave back, not a {type(sparse).__name__}", "sparse"
        )
    place = Path(path)
    check_place(place)
    return sparse, place


def checked_inputs(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The positional inputs of a model that is exported.

    Raises:
        ConfigError: they are no tensors, or none.
    """
    given: Any = example_inputs
    inputs = (given,) if isinstance(given, Tensor) else given
    usable = isinstance(inputs, (tuple, list)) and len(inputs) > 0
    if not usable or not all(isinstance(one, Tensor) and one.dim() > 0 for one in inputs):
        names = [type(one).__name__ for one in inputs] if usable else [type(given).__name__]
        raise ConfigError(
            "example_inputs must be a tensor [N, ...] or a tuple of such, not of "
            f"{', '.join(names)}: an exported model takes tensors only",
            "example_inputs",
        )
    return tuple(inputs)


def graphs_of(sparse: SparseModule, inputs: tuple[Any, ...]) -> tuple[Graphs, str | None]:
    """The graphs for these inputs, after a call that chose kernels for them, and whose they are.

    Raises:
        ExportError: there is no single graph, or hooks run around it.
    """
    if has_hooks(sparse):
        raise ExportError(
            "the model has hooks, which run around its graph and would be lost: remove them first"
        )
    with torch.no_grad():
        sparse(*inputs)
    try:
        return sparse.last_program()
    except TraceError as error:
        raise ExportError(
            f"the model is not one graph: {sparse.untraced['']}; an artifact holds one graph: "
            "move the code that cannot be traced out of the model"
        ) from error


def check_batch(graphs: Graphs, dynamic_batch: bool) -> None:
    """Raise ExportError if a file for any batch size is asked for, and graphs are for one only."""
    if dynamic_batch and graphs.one_batch:
        raise ExportError(
            "with another batch size the shapes of more than first extents change in this model: "
            "export it for the size of the example alone, with dynamic_batch=False"
        )


def _layers(sparse: SparseModule, achieved: Mapping[str, float]) -> list[dict[str, Any]]:
    """What became of every layer; `achieved` is the sparsity by layer."""
    return [
        {
            "name": decision.name,
            "sparse": decision.sparse,
            "reason": decision.reason,
            "sparsity": achieved.get(decision.name, 0.0),
            "multiply_adds": decision.macs,
        }
        for decision in sparse.decisions.values()
    ]


def _write(
    place: Path,
    manifest: dict[str, Any],
    link: Callable[[Path], None],
    constants: Mapping[str, Tensor],
    graph: str,
) -> None:
    place = place.resolve()  # what a link points to is written, not the link
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".dsgc-") as scratch:
        folder = Path(scratch)
        link(folder / "kernels.so")
        members = {
            "graph.txt": graph.encode(),
            "kernels.so": (folder / "kernels.so").read_bytes(),
            # Copies: tensors that share memory cannot be stored.
            "weights.safetensors": save_tensors({k: t.clone() for k, t in constants.items()}),
        }
        manifest["files"] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in members.items()
        }
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        _check_length(len(manifest["buffers"]), len(text))
        with zipfile.ZipFile(folder / "artifact", "w", zipfile.ZIP_STORED) as archive:
            # Readers check the manifest before they believe anything in it.
            archive.comment = hashlib.sha256(text).hexdigest().encode()
            for name, data in {"manifest.json": text, **members}.items():
                archive.writestr(zipfile.ZipInfo(name, _MOMENT), data)
        (folder / "artifact").replace(place)


def _check_length(buffers: int, size: int) -> None:
    """Raise ExportError for a program that no runtime would take."""
    if buffers > MOST_BUFFERS or size > MOST_MANIFEST:
        raise ExportError(
            f"its program has {buffers} buffers and {size} bytes, and an artifact holds at most "
            f"{MOST_BUFFERS} and {MOST_MANIFEST}: export the model in parts"
        )


def _manifest(
    emitted: Emitted, cpu: CpuTarget, batch: dict[str, Any], layers: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "dsgc": metadata.version("dsgc"),
        "target": {
            "name": cpu.name,
            "machine": machine_of(cpu),
            "features": required_features(cpu),
        },
        "batch": batch,
        **emitted.json(),
        "layers": layers,
    }
