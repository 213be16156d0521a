"""The ways to run a model that a bench compares: three dense ones, and dsgc."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgc.api import compile as make_sparse
from dsgc.bench.workload import Workload
from dsgc.errors import ConfigError, DsgcError
from dsgc.measure import TrainingStep

__all__ = [
    "COMPILED",
    "DSGC",
    "EAGER",
    "ONNXRUNTIME",
    "TITLES",
    "InferenceStep",
    "Side",
    "first_line",
    "make_dense_sides",
    "make_dsgc_side",
    "make_onnx_side",
    "make_step",
]

_LATER = 10_000  # a training step that stands for most

EAGER, COMPILED, ONNXRUNTIME, DSGC = "eager", "compiled", "onnxruntime", "dsgc"

TITLES: tuple[tuple[str, str], ...] = (
    (EAGER, "dense eager"),
    (COMPILED, "dense torch.compile"),
    (ONNXRUNTIME, "onnxruntime"),
    (DSGC, "dsgc"),
)
"""The sides in the order of the columns, with what people call them."""


@dataclass(frozen=True)
class InferenceStep:
    """One forward pass of `model` on `inputs` without gradients."""

    model: nn.Module
    inputs: Tensor

    def __call__(self) -> None:
        # Not inference_mode: within it the operators of a module cannot be counted one by one.
        with torch.no_grad():
            self.model(self.inputs)


@dataclass(frozen=True)
class Side:
    """One way to run a workload.

    Attributes:
        name: `EAGER`, `COMPILED`, `ONNXRUNTIME` or `DSGC`.
        step: does one step; None where this side cannot be had.
        model: whose parameters the step reads; None outside PyTorch.
        note: why there is no step.
    """

    name: str
    step: Callable[[], object] | None
    model: nn.Module | None = None
    note: str = ""

    def reset(self, state: Mapping[str, Tensor]) -> None:
        """Take up the parameters and buffers of `state`, without momentum."""
        if self.model is not None:
            self.model.load_state_dict(state)
        if isinstance(self.step, TrainingStep):
            self.step.optimizer.state.clear()


def make_dense_sides(
    workload: Workload, model: nn.Module, data: tuple[Tensor, Tensor], *, compiled: bool
) -> dict[str, Side]:
    """The dense sides, each with a copy of `model` of its own, ready to be timed.

    Args:
        workload: says which mode.
        model: of the workload, channels-last.
        data: of the workload.
        compiled: whether torch.compile is among them.

    Returns:
        Sides by name; one that failed or is not installed says so in its note.

    Raises:
        ConfigError: the eager side cannot do a step.
    """
    eager = copy.deepcopy(model)
    step = make_step(workload, eager, data)
    try:
        _twice(step)
    except Exception as error:
        raise ConfigError(f"{workload.name} cannot do a step: {first_line(error)}") from error
    sides = {EAGER: Side(EAGER, step, eager)}
    if compiled:
        sides[COMPILED] = _compiled_side(workload, copy.deepcopy(model), data)
    if workload.mode == "infer":
        sides[ONNXRUNTIME] = make_onnx_side(copy.deepcopy(model), data[0])
    return sides


def make_dsgc_side(
    workload: Workload, model: nn.Module, data: tuple[Tensor, Tensor], backend: str
) -> Side:
    """dsgc's side, on the parameters of `model`; graphs and kernels are built."""
    try:
        sparse = make_sparse(model, config=workload.config(), backend=backend)
        step = make_step(workload, sparse, data)
        _twice(step)
        # The first steps of a training project weights more often than those that follow.
        sparse.get_buffer("dsgc_selectors.step").fill_(_LATER)
    except DsgcError as error:
        return Side(DSGC, None, note=f"failed: {first_line(error)}")
    return Side(DSGC, step, sparse)


def make_step(
    workload: Workload, model: nn.Module, data: tuple[Tensor, Tensor]
) -> TrainingStep | InferenceStep:
    """A step of `model` in the workload's mode; sets the mode of the model."""
    inputs, labels = data
    if workload.mode == "infer":
        return InferenceStep(model.eval(), inputs)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return TrainingStep(model.train(), optimizer, F.cross_entropy, inputs, labels)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with the next one where it only announces that."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


def _compiled_side(workload: Workload, model: nn.Module, data: tuple[Tensor, Tensor]) -> Side:
    # Said outright, because generated code is made for one number of threads.
    options: dict[str, Any] = {"cpp.threads": torch.get_num_threads()}
    try:
        fast: Any = torch.compile(model, options=options)
        step = make_step(workload, fast, data)
        _twice(step)
    except Exception as error:
        # Whatever goes wrong in somebody else's compiler must not end the bench.
        return Side(COMPILED, None, note=f"failed: {first_line(error)}")
    return Side(COMPILED, step, model)


def make_onnx_side(model: nn.Module, inputs: Tensor) -> Side:
    """The dense model in ONNX Runtime, on as many threads as torch; they do not spin between calls,
    which would slow the other sides down.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter is written in it)
    except ImportError as error:
        return Side(ONNXRUNTIME, None, note=f"not installed ({error.name})")
    try:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.onnx"
            _export(model.eval(), inputs, path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.inter_op_num_threads = 1
            # Its threads would go on spinning while the others are measured.
            options.add_session_config_entry("session.force_spinning_stop", "1")
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        feed = {session.get_inputs()[0].name: inputs.contiguous().numpy()}
        step = _OnnxStep(session, feed)
        _twice(step)
    except Exception as error:
        return Side(ONNXRUNTIME, None, note=f"failed: {first_line(error)}")
    return Side(ONNXRUNTIME, step)


def _export(model: nn.Module, inputs: Tensor, path: Path) -> None:
    """Write `model` as ONNX, without the exporter's chatter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            torch.onnx.export(model, (inputs.contiguous(),), str(path), dynamo=True)
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class _OnnxStep:
    session: Any
    feed: Mapping[str, Any]

    def __call__(self) -> None:
        self.session.run(None, self.feed)


def _twice(step: Callable[[], object]) -> None:
    """Everything that is done only once: compilation, caches, memory pools."""
    step()
    step()
