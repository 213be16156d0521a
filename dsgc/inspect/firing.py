"""Which blocks fire: where in the image, for which class, and how that changes in training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsgc.errors import InputError
from dsgc.inspect.page_data import PageFiring
from dsgc.module import SparseModule

__all__ = ["FiringRecorder", "LayerFirings", "load_firings"]

_FORMAT = "2"
_PICTURED = 4  # blocks of a layer whose positions are drawn


@dataclass
class LayerFirings:
    """What was seen of a layer's selections.

    Attributes:
        samples: how many samples.
        positions: float64 [blocks, H, W], how many of them selected a block at a position.
        classes: float64 [classes, blocks], the fraction of positions by the class of the input,
            summed over its samples; no rows without labels.
        counts: [classes], how many samples of each were summed.
        steps: the training steps that were looked at.
        over_training: [steps][blocks], the fraction of positions that selected a block.
    """

    samples: int
    positions: Tensor
    classes: Tensor
    counts: Tensor
    steps: list[int] = field(default_factory=list)
    over_training: list[list[float]] = field(default_factory=list)


class FiringRecorder:
    """Collects the selections of a compiled model, for the pictures of its inspection page.

    ``recorder.observe(images, labels=labels)`` whenever it should look: after every epoch, on the
    same batch, shows how the use of blocks changes. Observing runs the model once in eval mode and
    changes nothing.

    Args:
        sparse: the compiled model.
        classes: names of the classes that labels are numbers of; empty to go without.

    Attributes:
        layers: what was seen, by layer.
    """

    def __init__(self, sparse: SparseModule, classes: Sequence[str] = ()) -> None:
        # Not by its class: importing that here would be a circle.
        if not callable(getattr(sparse, "selections", None)):
            raise InputError(f"a compiled model has selections, not a {type(sparse).__name__}")
        if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
            raise InputError(f"classes must be a sequence of names, not {classes!r}")
        self.sparse = sparse
        self.classes = tuple(classes)
        self.layers: dict[str, LayerFirings] = {}

    def observe(self, *inputs: Any, labels: Tensor | None = None) -> None:
        """Look at the selections for a batch; layers whose maps have another size begin anew.

        Args:
            inputs: of the model.
            labels: int64 [N], the classes of the samples.

        Raises:
            InputError: labels without names of classes, beyond them, or not one a sample.
        """
        masks = self.sparse.selections(*inputs)
        step = int(self.sparse._bank.step)
        chosen = self._checked(labels, inputs)
        for site, mask in masks.items():
            self._add(site, mask, chosen, step)

    def _checked(self, labels: Tensor | None, inputs: tuple[Any, ...]) -> Tensor | None:
        if labels is None:
            return None
        if not self.classes:
            raise InputError("labels need names: give the recorder its classes")
        batch = inputs[0].shape[0]
        labels = torch.as_tensor(labels)
        whole = not labels.is_floating_point()
        fits = whole and labels.dim() == 1 and labels.shape[0] == batch > 0
        if not fits or bool(((labels < 0) | (labels >= len(self.classes))).any()):
            raise InputError(
                f"labels must be {batch} numbers below {len(self.classes)}, one a sample"
            )
        return labels.cpu().long()

    def _add(self, site: str, mask: Tensor, labels: Tensor | None, step: int) -> None:
        found = mask.cpu().double()
        samples = found.shape[0]
        if labels is not None and samples % labels.shape[0] == 0:
            # A linear layer on tokens has several rows a sample.
            by_sample = found.reshape(labels.shape[0], -1, *found.shape[1:]).mean((1, 3, 4))
        else:
            by_sample, labels = found.mean((2, 3)), None
        layer = self.layers.get(site)
        if layer is None or layer.positions.shape != found.shape[1:]:
            classes = torch.zeros(len(self.classes), found.shape[1], dtype=torch.float64)
            positions = torch.zeros(found.shape[1:], dtype=torch.float64)
            layer = LayerFirings(0, positions, classes, torch.zeros(len(self.classes)))
            self.layers[site] = layer
        layer.samples += samples
        layer.positions += found.sum(0)
        if labels is not None:
            layer.classes.index_add_(0, labels, by_sample)
            layer.counts += torch.bincount(labels, minlength=len(self.classes))
        layer.steps.append(step)
        layer.over_training.append(found.mean((0, 2, 3)).tolist())

    def pictures(self) -> dict[str, tuple[PageFiring, ...]]:
        """The pictures of every layer."""
        return _pictures(self.layers, self.classes)

    def save(self, path: str | Path) -> None:
        """Write all of it to a safetensors file.

        Raises:
            OSError: it cannot be written.
        """
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        about: dict[str, Any] = {}
        for site, layer in self.layers.items():
            tensors[f"positions of {site}"] = layer.positions.contiguous()
            tensors[f"classes of {site}"] = layer.classes.contiguous()
            tensors[f"counts of {site}"] = layer.counts
            about[site] = {
                "samples": layer.samples,
                "steps": layer.steps,
                "over_training": layer.over_training,
            }
        header = {"firings": _FORMAT, "classes": json.dumps(self.classes), "is": json.dumps(about)}
        try:
            save_file(tensors, Path(path), metadata=header)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error

    def restore(self, path: str | Path) -> None:
        """Go on with what an earlier recorder of the same classes saved.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: it is something else, or of other classes.
        """
        layers, classes = _read(path)
        if classes != self.classes:
            raise InputError(f"{path} is of the classes {classes}, not of {self.classes}")
        self.layers = layers


def load_firings(path: str | Path) -> dict[str, tuple[PageFiring, ...]]:
    """The pictures in a file that `FiringRecorder.save` wrote.

    Raises:
        FileNotFoundError: there is none.
        InputError: it is something else.
    """
    return _pictures(*_read(path))


def _read(path: str | Path) -> tuple[dict[str, LayerFirings], tuple[str, ...]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(Path(path), framework="pt") as file:
            header = file.metadata() or {}
            if header.get("firings") != _FORMAT:
                raise InputError(f"{path} was not written by FiringRecorder.save")
            about = json.loads(header["is"])
            layers = {
                site: LayerFirings(
                    one["samples"],
                    file.get_tensor(f"positions of {site}"),
                    file.get_tensor(f"classes of {site}"),
                    file.get_tensor(f"counts of {site}"),
                    one["steps"],
                    one["over_training"],
                )
                for site, one in about.items()
            }
            classes = tuple(json.loads(header["classes"]))
            return layers, classes
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} was not written by FiringRecorder.save: {error}") from error


def _pictures(
    layers: Mapping[str, LayerFirings], classes: tuple[str, ...]
) -> dict[str, tuple[PageFiring, ...]]:
    found = {}
    for site, layer in layers.items():
        pictures = [_by_position(layer, block) for block in _busiest(layer)]
        seen = [i for i, count in enumerate(layer.counts.tolist()) if count > 0]
        blocks = _numbered(layer.positions.shape[0])
        if seen:
            shares = layer.classes[seen] / layer.counts[seen].unsqueeze(1)
            pictures.append(
                PageFiring(
                    "By class of input",
                    tuple(classes[i] for i in seen),
                    blocks,
                    _rows(shares),
                    "class",
                    "block",
                    "Fraction of the positions of a class's samples that selected a block.",
                )
            )
        if len(layer.steps) > 1:
            pictures.append(
                PageFiring(
                    "Over training",
                    tuple(f"step {step}" for step in layer.steps),
                    blocks,
                    tuple(tuple(row) for row in layer.over_training),
                    "step",
                    "block",
                    "Fraction of positions that selected a block.",
                )
            )
        found[site] = tuple(pictures)
    return found


def _busiest(layer: LayerFirings) -> list[int]:
    """The blocks to draw by position: where a map has positions."""
    if layer.positions.shape[1] * layer.positions.shape[2] == 1:
        return []
    totals = layer.positions.sum((1, 2))
    return totals.argsort(descending=True, stable=True)[:_PICTURED].tolist()


def _by_position(layer: LayerFirings, block: int) -> PageFiring:
    shares = layer.positions[block] / max(1, layer.samples)
    return PageFiring(
        f"Block {block}, by position",
        _numbered(shares.shape[0]),
        _numbered(shares.shape[1]),
        _rows(shares),
        "row",
        "column",
        "Fraction of samples that selected the block at a position of the output map.",
    )


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(str(i) for i in range(count))


def _rows(values: Tensor) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in values.tolist())
