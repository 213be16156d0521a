r"""Trains a network on CIFAR-10, dense or sparse, and writes down what came of it.

    python examples/cifar10.py DATA --network vgg8 --sparsity 0.8 --epochs 20 --out runs/vgg8-80
    python examples/cifar10.py DATA --network vgg8 --sparsity 0 --epochs 20 --out runs/vgg8
    python examples/cifar10.py DATA --sparsity 0.5 --start runs/vgg8 --rate 0.02 --epochs 2 \
        --warmup-epochs 0.5 --out runs/vgg8-50
    python examples/cifar10_plots.py runs/vgg8 runs/vgg8-80 --out runs/vgg8.png
    dsgc inspect vgg8 --firings runs/vgg8-80/firings.safetensors --html runs/vgg8.html

A run that is stopped goes on where it was when it is started again with the same options. On the
CPU sparse networks run on packed kernels; elsewhere on the reference backend, which masks dense
tensors: the same training, but not faster.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cifar10_data import CLASSES, Cifar10, DataError, batches, load, normalized
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import dsgc
from dsgc import zoo
from dsgc.files import write_json, write_whole
from dsgc.inspect.load import BlockLoad
from dsgc.measure import channels_last
from dsgc.multiply_adds import count_multiply_adds

_SPARSITY_FIELDS = (
    "block",
    "scope",
    "selector",
    "projection",
    "ranking",
    "refresh",
    "epsilon",
    "bn_stats",
    "share_pool",
    "keep_dense",
)
_TEST_BATCH = 500
_LOOKED_AT = 256  # test images whose selections are written down
_GROUPED_BY = 256  # training images by which neurons are grouped


@dataclass(frozen=True)
class Options:
    """What a run does; a checkpoint of other options is refused."""

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
    start: str | None
    group: bool


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
            _load_parameters(dense, Path(options.start) / "checkpoint.pt", options)
        self.model = self._compiled(channels_last(dense).to(device))
        self.generator = torch.Generator().manual_seed(options.seed)
        self.steps = max(1, math.ceil(len(data.train_labels) / options.batch))
        self.optimizer = torch.optim.SGD(
            _groups(self.model), lr=options.rate, momentum=0.9, nesterov=True
        )
        self.epochs: list[Epoch] = []
        self.seconds = 0.0
        if isinstance(self.model, dsgc.SparseModule):
            self.recorder = dsgc.FiringRecorder(self.model, CLASSES)

    def _compiled(self, model: nn.Module) -> nn.Module:
        options = self.options
        if options.sparsity == 0:
            return model
        warmup = round(options.warmup_epochs * len(self.data.train_labels) / options.batch)
        settings: dict[str, Any] = {"sparsity": options.sparsity, "seed": options.seed}
        if warmup:
            settings |= {"schedule": "cubic", "warmup_steps": warmup}
        given = dict(options.settings)
        settings["rules"] = dict.fromkeys(given.pop("keep_dense", ()))
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
            with self._precision():
                output = self.model(images)
                loss = F.cross_entropy(output, labels)
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
            with self._precision():
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
        images = normalized(self.data.test_images[:_LOOKED_AT], self.device)
        self.recorder.observe(images, labels=self.data.test_labels[:_LOOKED_AT])
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
        images = normalized(self.data.test_images[:_LOOKED_AT], self.device)
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

    def _precision(self) -> contextlib.AbstractContextManager[object]:
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
        mine, theirs = asdict(self.options), state["options"]
        if other := sorted(key for key in mine if mine[key] != theirs.get(key)):
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


def _load_parameters(model: nn.Module, place: Path, options: Options) -> None:
    """The parameters of a dense run. Raises ValueError if it is of another network, or sparse."""
    state = torch.load(place, map_location="cpu", weights_only=True)
    theirs = state["options"]
    if (theirs["network"], theirs["width"]) != (options.network, options.width):
        raise ValueError(f"{place} is of {theirs['network']} of width {theirs['width']}")
    if theirs["sparsity"]:
        raise ValueError(f"{place} is of a sparse run: --start takes a dense one")
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, train, write; exits with 2 for wrong input, 1 if training fails."""
    parser = _parser()
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    if given.threads:
        torch.set_num_threads(given.threads)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = {name: getattr(given, name) for name in _SPARSITY_FIELDS}
    options = Options(
        *(given.network, given.width, given.epochs, given.batch, given.rate, given.seed),
        *(given.sparsity, {k: v for k, v in settings.items() if v is not None}),
        *(given.warmup_epochs, given.dense_epochs, given.bf16),
        *(given.train_images, given.test_images, given.start, given.group),
    )
    out = Path(given.out)
    try:
        data = load(Path(given.data)).limited(given.train_images, given.test_images)
        run = Run(options, data, device)
        out.mkdir(parents=True, exist_ok=True)
        if (out / "checkpoint.pt").exists():
            run.resume(out / "checkpoint.pt")
            if options.sparsity and (out / "firings.safetensors").exists():
                run.recorder.restore(out / "firings.safetensors")
    except (DataError, dsgc.DsgcError, ValueError, OSError) as error:
        parser.error(str(error))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    try:
        with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
            last = given.stop_after or options.epochs
            while len(run.epochs) < min(options.epochs, last):
                done = run.epoch(progress)
                run.save(out / "checkpoint.pt")
                run.write(out / "results.json")
                if done.layers:
                    run.recorder.save(out / "firings.safetensors")
                console.print(_line(done))
    except (RuntimeError, dsgc.DsgcError) as error:
        sys.exit(f"error: {error}")


def _line(epoch: Epoch) -> str:
    sparsities = [layer["sparsity"] for layer in epoch.layers.values()]
    achieved = ""
    if sparsities:
        achieved = f", layers {min(sparsities):.0%} to {max(sparsities):.0%} sparse"
    return (
        f"epoch {epoch.epoch}: loss {epoch.train_loss:.3f}, test accuracy "
        f"{epoch.test_accuracy:.2%}, {epoch.seconds:.0f} s of training{achieved}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Train a network on CIFAR-10 with dsgc.")
    add = parser.add_argument
    add("data", help=".npz of JPEG files, or a folder with the python or binary batches")
    add("--network", default="vgg8", choices=zoo.NAMES)
    add("--width", type=float, default=1.0, help="multiplies every hidden width")
    add("--sparsity", type=float, default=0.8, help="of neurons; 0 trains the dense network")
    add("--epochs", type=int, default=20)
    add("--batch", type=int, default=128)
    add("--rate", type=float, default=0.1, help="largest learning rate of the cycle")
    add("--warmup-epochs", type=float, default=0.0, help="over which sparsity grows")
    add("--dense-epochs", type=int, default=0, help="the last ones, trained without sparsity")
    add("--seed", type=int, default=0)
    add("--block", type=int, help="channels selected together")
    add("--scope", choices=("position", "sample", "batch"))
    add("--selector", choices=("svd", "drs", "oracle", "random"))
    add("--projection", choices=("pixel", "window"))
    add("--ranking", choices=("normalized", "raw"))
    add("--epsilon", type=float, help="sets the dimensions of the search")
    add("--refresh", type=int, help="steps between two projections of the weights")
    add("--bn-stats", choices=("active", "all"))
    add("--keep-dense", nargs="+", metavar="LAYER", help="names of layers to keep dense")
    add("--share-pool", action="store_const", const=True, help="one selection a pooling window")
    add("--start", metavar="RUN", help="folder of a dense run whose parameters to begin with")
    add("--group", action="store_true", help="reorder channels first: dsgc.group_neurons")
    add("--bf16", action="store_true", help="autocast to bfloat16 (reference backend and dense)")
    add("--device", help="cpu, cuda, ...; by default a GPU if there is one")
    add("--threads", type=int)
    add("--train-images", type=int, help="use only so many")
    add("--test-images", type=int, help="use only so many")
    add("--stop-after", type=int, help="stop after this epoch; a later call goes on")
    add("--out", default="runs/cifar10", help="folder for results.json and the checkpoint")
    return parser


if __name__ == "__main__":
    main()
