"""A network in training on CIFAR-10: cifar10.py trains it, other scripts look at it afterwards."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar10_data import CLASSES, Cifar10, batches, normalized
from rich.progress import Progress
from torch import Tensor, nn

import dsgc
from dsgc import zoo
from dsgc.files import write_json, write_whole
from dsgc.inspect.load import BlockLoad
from dsgc.measure import channels_last
from dsgc.multiply_adds import count_multiply_adds

__all__ = ["LOOKED_AT", "Epoch", "Options", "Run", "reopen"]

_TEST_BATCH = 500
LOOKED_AT = 256
"""Test images whose selections are written down and whose multiply-adds are counted."""

_GROUPED_BY = 256  # training images by which neurons are grouped
# Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).
_TEMPERATURE = 2.0
_TEACHERS_PART = 0.7  # of the loss


@dataclass(frozen=True)
class Options:
    """What a run does; a checkpoint of other options is refused.

    Fields with defaults came later: a checkpoint without them was made with the defaults.
    """

    network: str
    width: float
    epochs: int
    batch: int
    rate: float
    seed: int
    sparsity: float
    settings: dict[str, Any]
    warmup_epochs: float
    dense_epochs: int
    bf16: bool
    train_images: int | None
    test_images: int | None
    start: str | None = None
    group: bool = False
    distill: str | None = None


@dataclass
class Epoch:
    """What is known after an epoch; seconds are of training alone, from the start of the run."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    rate: float
    seconds: float
    layers: dict[str, dict[str, float]] = field(default_factory=dict)


class Run:
    """A network in training."""

    def __init__(self, options: Options, data: Cifar10, device: torch.device) -> None:
        self.options, self.data, self.device = options, data, device
        torch.manual_seed(options.seed)
        dense = zoo.build(options.network, width=options.width, in_channels=3, image_size=32)
        if options.start is not None:
            run = Path(options.start)
            _load_parameters(dense, _read_checkpoint(run), run, options)
        self.teacher = self._trained() if options.distill is not None else None
        self.model = self._compiled(channels_last(dense).to(device))
        self.generator = torch.Generator().manual_seed(options.seed)
        self.steps = max(1, math.ceil(len(data.train_labels) / options.batch))
        self.optimizer = torch.optim.SGD(
            _groups(self.model),
            lr=options.rate,
            momentum=0.9,
            nesterov=True,
            fused=device.type in ("cpu", "cuda"),  # one pass over the weights instead of seven
        )
        self.epochs: list[Epoch] = []
        self.seconds = 0.0
        if isinstance(self.model, dsgc.SparseModule):
            self.recorder = dsgc.FiringRecorder(self.model, CLASSES)

    def _trained(self) -> nn.Module:
        """The dense network to learn from, which may have another width."""
        run = Path(str(self.options.distill))
        state = _read_checkpoint(run)
        theirs = Options(**state["options"])
        model = zoo.build(theirs.network, width=theirs.width, in_channels=3, image_size=32)
        _load_parameters(model, state, run, theirs)
        return channels_last(model).to(self.device).eval().requires_grad_(False)

    def _compiled(self, model: nn.Module) -> nn.Module:
        options = self.options
        if options.sparsity == 0:
            return model
        warmup = round(options.warmup_epochs * len(self.data.train_labels) / options.batch)
        settings: dict[str, Any] = {"sparsity": options.sparsity, "seed": options.seed}
        if warmup:
            settings |= {"schedule": "cubic", "warmup_steps": warmup}
        given = dict(options.settings)
        # The first rule that fits a layer counts.
        settings["rules"] = {
            **dict.fromkeys(given.pop("keep_dense", ())),
            **dict.fromkeys(given.pop("make_sparse", ()), options.sparsity),
        }
        config = dsgc.SparsityConfig(**settings, **given)
        if options.group:
            sample = normalized(self.data.train_images[:_GROUPED_BY], self.device)
            print(dsgc.group_neurons(model, config=config, example_inputs=sample), file=sys.stderr)
        sparse = dsgc.compile(model, config=config)
        # Layers are chosen by the first batch: by a whole one, whatever is run later.
        size = min(options.batch, len(self.data.train_labels))
        with torch.no_grad():
            sparse.eval()(normalized(self.data.train_images[:size], self.device))
        return sparse

    def epoch(self, progress: Progress) -> Epoch:
        """Train for one epoch and test."""
        number = len(self.epochs)
        self._end_sparsity()
        task = progress.add_task(f"epoch {number + 1}/{self.options.epochs}", total=self.steps)
        self.model.train()
        loss_sum = torch.zeros((), device=self.device)
        right, seen, rate = torch.zeros((), device=self.device), 0, 0.0
        images, labels = self.data.train_images, self.data.train_labels
        source = batches(images, labels, self.options.batch, self.generator, self.device)
        for step, (images, labels) in enumerate(source):
            begun = time.perf_counter()
            rate = self._set_rate((number + step / self.steps) / self.options.epochs)
            self.optimizer.zero_grad()
            with self.precision():
                output = self.model(images)
                loss = self._loss(images, output, labels)
            if not torch.isfinite(loss):
                raise RuntimeError(f"the loss is {loss.item()} in epoch {number + 1}, step {step}")
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.seconds += time.perf_counter() - begun
            loss_sum += loss.detach() * len(labels)
            right += (output.argmax(1) == labels).sum()
            seen += len(labels)
            progress.advance(task)
        tested = self.test()
        done = Epoch(
            *(number + 1, float(loss_sum) / seen, float(right) / seen, *tested),
            *(rate, self.seconds, self.layers()),
        )
        progress.remove_task(task)
        self.epochs.append(done)
        return done

    def _loss(self, images: Tensor, output: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy; with a teacher mostly the divergence from its softened answer."""
        loss = F.cross_entropy(output, labels)
        if self.teacher is None:
            return loss
        # The teacher's products may be as coarse as the machine is fast with.
        with torch.autocast(self.device.type, dtype=torch.bfloat16), torch.no_grad():
            answer = self.teacher(images).float()
        mine, its = (F.log_softmax(one / _TEMPERATURE, 1) for one in (output.float(), answer))
        apart = F.kl_div(mine, its, reduction="batchmean", log_target=True) * _TEMPERATURE**2
        return (1 - _TEACHERS_PART) * loss + _TEACHERS_PART * apart

    def _end_sparsity(self) -> None:
        """For the last epochs of a run that ends dense: the dense model, of the same parameters."""
        rest = self.options.epochs - len(self.epochs)
        if isinstance(self.model, dsgc.SparseModule) and rest <= self.options.dense_epochs:
            self.model = self.model.to_dense()

    @torch.no_grad()
    def test(self) -> tuple[float, float]:
        """Loss and accuracy on the test images."""
        self.model.eval()
        loss, right = 0.0, 0
        images, labels = self.data.test_images, self.data.test_labels.to(self.device)
        for start in range(0, len(labels), _TEST_BATCH):
            wanted = labels[start : start + _TEST_BATCH]
            with self.precision():
                output = self.model(normalized(images[start : start + _TEST_BATCH], self.device))
            loss += float(F.cross_entropy(output.float(), wanted, reduction="sum"))
            right += int((output.argmax(1) == wanted).sum())
        return loss / len(labels), right / len(labels)

    def layers(self) -> dict[str, dict[str, float]]:
        """Of every sparse layer: achieved sparsity, and how evenly its blocks are used.

        `busiest` is the load of the most used block as a multiple of the mean; `dead` counts blocks
        that no position of the looked-at images chose.
        """
        if not isinstance(self.model, dsgc.SparseModule):
            return {}
        images = normalized(self.data.test_images[:LOOKED_AT], self.device)
        self.recorder.observe(images, labels=self.data.test_labels[:LOOKED_AT])
        found = {}
        for name, layer in self.recorder.layers.items():
            load = BlockLoad(tuple(layer.over_training[-1]))
            found[name] = {
                "sparsity": load.sparsity,
                "busiest": load.busiest,
                "dead": len(load.dead),
                "blocks": len(load.shares),
            }
        return found

    @torch.no_grad()
    def multiply_adds(self) -> dict[str, int] | None:
        """Multiply-adds of inference on the looked-at images; None where they are not left out."""
        images = normalized(self.data.test_images[:LOOKED_AT], self.device)
        self.model.eval()
        found = count_multiply_adds(lambda: self.model(images))
        if isinstance(self.model, dsgc.SparseModule) and self.model.backend == "reference":
            return None
        return {"done": found.done, "search": found.search, "dense": found.dense}

    def _set_rate(self, progress: float) -> float:
        """One cycle: up over a quarter of the run, then a cosine down to nothing."""
        peak = 0.25
        part = progress / peak if progress < peak else _cosine((progress - peak) / (1 - peak))
        rate = self.options.rate * max(part, 1e-3)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """Within, forward passes compute as they do in training."""
        if not self.options.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def save(self, place: Path) -> None:
        """Everything that a later process needs to go on; complete or not there at all."""
        state = {
            "options": asdict(self.options),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "seconds": self.seconds,
        }
        write_whole(place, lambda scratch: torch.save(state, scratch))

    def resume(self, place: Path) -> None:
        """Go on from a checkpoint. Raises ValueError if it is of other options."""
        state = torch.load(place, map_location=self.device, weights_only=True)
        mine, theirs = asdict(self.options), asdict(Options(**state["options"]))
        if other := sorted(key for key in mine if mine[key] != theirs[key]):
            raise ValueError(
                f"{place} was made with another {', '.join(other)}; choose another --out"
            )
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        if self.options.epochs - len(self.epochs) < self.options.dense_epochs:
            self._end_sparsity()
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch"].cpu())
        self.seconds = state["seconds"]

    def write(self, place: Path) -> None:
        """Results as JSON; readable after every epoch."""
        content = {
            "options": asdict(self.options),
            "machine": {
                "device": str(self.device),
                "torch": torch.__version__,
                "dsgc": metadata.version("dsgc"),
                "threads": torch.get_num_threads(),
            },
            "backend": self.model.backend if isinstance(self.model, dsgc.SparseModule) else "dense",
            "multiply_adds": self.multiply_adds(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
        }
        write_json(place, content)


def reopen(folder: Path, options: Options, data: Cifar10, device: torch.device) -> Run:
    """The run in `folder` as it was left. Raises OSError, and ValueError for other options."""
    run = Run(options, data, device)
    run.resume(folder / "checkpoint.pt")
    return run


def _read_checkpoint(run: Path) -> dict[str, Any]:
    """What a run saved. Raises OSError."""
    state: dict[str, Any] = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    return state


def _load_parameters(model: nn.Module, state: dict[str, Any], run: Path, options: Options) -> None:
    """The parameters of a dense run. Raises ValueError if it is of another network, or sparse."""
    theirs = state["options"]
    if (theirs["network"], theirs["width"]) != (options.network, options.width):
        raise ValueError(f"{run} is of {theirs['network']} of width {theirs['width']}")
    if theirs["sparsity"]:
        raise ValueError(f"{run} is of a sparse run: take a dense one")
    model.load_state_dict(state["model"])


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Weights decay, biases and normalisation do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 5e-4},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * part))
