"""Writes a compiled model as ONNX, for any runtime of ONNX."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dsgc.errors import ExportError, MissingPackageError
from dsgc.exporter.artifact import check_batch, checked, checked_inputs, graphs_of
from dsgc.exporter.onnx_form import DOMAIN, VERSION, onnx_form

__all__ = ["export_onnx"]

_OPSET = 18


def export_onnx(
    sparse: nn.Module,
    path: str | Path,
    example_inputs: Tensor | Sequence[Tensor],
    *,
    dynamic_batch: bool = True,
) -> Path:
    """Write a compiled model as ONNX, in eval mode.

    The file computes what the semantic graph does, on dense tensors with masks: it shows which
    neurons are chosen and gives the same results anywhere, and is no faster than a dense model.
    Sparse operators are functions of domain "dsgc", made of standard operators.

    Args:
        sparse: what `dsgc.compile` gave back; it is left as it is.
        path: the file; it appears complete or not at all.
        example_inputs: positional inputs.
        dynamic_batch: whether the first dimension of every input is free.

    Returns:
        The path.

    Raises:
        ConfigError: `sparse` or `path` is not possible.
        ExportError: the model cannot be written.
        MissingPackageError: onnx or onnxscript is not installed.
        OSError: the file cannot be written.
    """
    module, place = checked(sparse, path)
    inputs = checked_inputs(example_inputs)
    functions = _functions()
    with module.in_eval_mode(*inputs), torch.no_grad():
        graphs, _ = graphs_of(module, inputs)
        check_batch(graphs, dynamic_batch)
        form = onnx_form(graphs.semantic)
        inputs = tuple(_plain(x, dynamic_batch) for x in inputs)
        batch = torch.export.Dim("batch")
        shapes = tuple({0: batch} for _ in inputs) if dynamic_batch else None
        real = place.resolve()  # what a link points to is written, not the link
        with tempfile.TemporaryDirectory(dir=real.parent, prefix=".dsgc-") as scratch:
            file = Path(scratch) / real.name
            _write(form, inputs, shapes, functions, file)
            file.replace(real)
    return place


def _plain(x: Tensor, dynamic_batch: bool) -> Tensor:
    """An example as torch's exporter takes it: it takes tensors in one place for one input, and
    extents of 1 for constants.
    """
    apart = x.detach().clone(memory_format=torch.contiguous_format)
    few = dynamic_batch and len(x) < 2
    return x.new_zeros(2, *x.shape[1:]) if few else apart


def _functions() -> list[Any]:
    """The functions that sparse operators become."""
    try:
        functions = importlib.import_module("dsgc.exporter.onnx_functions")
    except ImportError as error:
        raise MissingPackageError(
            f"export_onnx needs the packages onnx and onnxscript ({error}): "
            "pip install 'dsgc[onnx]'"
        ) from error
    return [
        functions.EstimateOutputs,
        functions.BlockScores,
        functions.SelectWinners,
        functions.MaskBlocks,
    ]


def _write(
    form: nn.Module,
    inputs: tuple[Tensor, ...],
    shapes: tuple[dict[int, Any], ...] | None,
    functions: Sequence[Any],
    file: Path,
) -> None:
    import onnx

    try:
        made = torch.onnx.export(
            form, inputs, dynamo=True, opset_version=_OPSET, dynamic_shapes=shapes, verbose=False
        )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"the model cannot be written as ONNX: {error}") from error
    if made is None:
        raise ExportError("torch's ONNX exporter returned nothing")
    # Functions come last, because torch's exporter inlines those that it knows of.
    model = made.model_proto
    called = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    model.functions.extend(f.to_function_proto() for f in functions if f.name in called)
    if called and all(one.domain != DOMAIN for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, VERSION))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"what torch wrote as ONNX is not valid: {error}") from error
    onnx.save(model, str(file))
