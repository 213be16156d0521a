"""What `dsgc demo` does: one small network, trained dense and sparse, side by side."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

import dsgc
from dsgc.errors import DsgcError
from dsgc.measure import (
    TrainingStep,
    channels_last,
    comparison_table,
    format_bytes,
    format_count,
    format_ratio,
    interleaved,
    kept_for_backward,
)
from dsgc.multiply_adds import count_multiply_adds

__all__ = ["DemoOptions", "DemoResult", "Digits", "DigitsNet", "Side", "load_digits", "run"]

_TEST_IMAGES = 360
_IMAGE_SIZE = 16

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class DemoOptions:
    """What `run` does.

    Attributes:
        sparsity: fraction of a sparse layer's neurons that are left out.
        epochs: passes over the training images, for each of the two networks.
        batch_size: images of a step.
        seed: of parameters, order of the images and selections.
        backend: passed to `dsgc.compile`.
        rounds: timed steps of each network.
    """

    sparsity: float = 0.8
    epochs: int = 12
    batch_size: int = 64
    seed: int = 0
    backend: str = "auto"
    rounds: int = 15


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 16, 16] float32 and labels [N] int64, split into two parts."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Side:
    """What was measured of one network.

    Attributes:
        accuracy: fraction of the held-out images that are labelled right.
        step_seconds: median time of a training step.
        step_quartiles: lower and upper quartile of that time.
        kept_bytes: bytes kept for backward.
        multiply_adds: of one training step, without the search.
        search: multiply-adds of choosing what to compute.
        sparsity: achieved by the sparse layers; None where nothing was left out.
    """

    accuracy: float
    step_seconds: float
    step_quartiles: tuple[float, float]
    kept_bytes: int
    multiply_adds: int
    search: int
    sparsity: float | None


@dataclass(frozen=True)
class DemoResult:
    """Both sides of the demonstration and what it was run with.

    Attributes:
        options: what was asked for.
        threads: of torch and of the generated kernels.
        backend: what ran the sparse network.
        dense: the figures of the dense network.
        sparse: the figures of the sparse one.
    """

    options: DemoOptions
    threads: int
    backend: str
    dense: Side
    sparse: Side

    def as_dict(self) -> dict[str, Any]:
        """Everything as numbers and text, for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """Sparse beside dense, with a line that says which one is faster."""
        return _table(self)


class DigitsNet(nn.Module):
    """Five 3x3 convolutions with BatchNorm and ReLU at 64/128 channels, pooled twice.

    Args:
        width: multiplies the channels.
    """

    def __init__(self, width: float = 1.0) -> None:
        super().__init__()
        narrow, wide = max(1, round(64 * width)), max(1, round(128 * width))
        self.features = nn.Sequential(
            *_unit(1, narrow),
            *_unit(narrow, wide),
            nn.MaxPool2d(2),
            *_unit(wide, wide),
            *_unit(wide, wide),
            nn.MaxPool2d(2),
            *_unit(wide, wide),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, H, W] -> [N, 10]."""
        x = self.pool(self.features(x))
        return cast(Tensor, self.classifier(torch.flatten(x, 1)))


def _unit(in_channels: int, channels: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU()]


def load_digits(seed: int = 0) -> Digits:
    """scikit-learn's bundled handwritten digits, enlarged from 8x8 to 16x16 and standardised.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI 1998; 1797 images,
    of which 360 chosen by `seed` are held out.

    Raises:
        DsgcError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise DsgcError(
            "the demonstration trains on images that come with scikit-learn, which is not "
            "installed: pip install 'dsgc[demo]'"
        ) from error
    data = load()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(data.target, dtype=torch.int64)
    images = F.interpolate(images, size=_IMAGE_SIZE, mode="bilinear", align_corners=False)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[:_TEST_IMAGES], order[_TEST_IMAGES:]
    mean, deviation = images[train].mean(), images[train].std()
    images = (images - mean) / deviation
    return Digits(images[train], labels[train], images[test], labels[test])


def run(options: DemoOptions, progress: Progress | None = None) -> DemoResult:
    """Train both networks from the same parameters, in the same order, and measure them.

    Args:
        options: what to do.
        progress: called with ("dense" or "sparse", steps done, steps in all) after every step, and
            with ("measure", 0 or 1, 1) around the measurements.

    Raises:
        DsgcError: scikit-learn is missing, or a value is not possible.
    """
    config = dsgc.SparsityConfig(sparsity=options.sparsity, seed=options.seed)
    if options.epochs < 1 or options.rounds < 1:
        raise DsgcError("epochs and rounds must be at least 1")
    report = progress or (lambda name, done, total: None)
    digits = load_digits(options.seed)
    if not 2 <= options.batch_size <= len(digits.train_labels):
        raise DsgcError(f"batch size must be from 2 to {len(digits.train_labels)}")
    torch.manual_seed(options.seed)
    dense = channels_last(DigitsNet())
    sparse = dsgc.compile(copy.deepcopy(dense), config=config, backend=options.backend)
    models: dict[str, nn.Module] = {"dense": dense, "sparse": sparse}
    steps = {name: _train(name, model, digits, options, report) for name, model in models.items()}
    accuracies = {name: accuracy(model, digits) for name, model in models.items()}
    report("measure", 0, 1)
    for model in models.values():
        model.train()
    timings = interleaved(steps, rounds=options.rounds)
    sides = {}
    for name, step in steps.items():
        counted = count_multiply_adds(step)
        sides[name] = Side(
            accuracy=accuracies[name],
            step_seconds=timings[name].median,
            step_quartiles=timings[name].quartiles,
            kept_bytes=kept_for_backward(step.forward, step.model),
            multiply_adds=counted.done,
            search=counted.search,
            sparsity=counted.sparsity,
        )
    report("measure", 1, 1)
    return DemoResult(options, torch.get_num_threads(), sparse.backend, **sides)


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Fraction of the held-out images that `model` labels right; leaves it in eval mode."""
    model.eval()
    with torch.no_grad():
        outputs = [model(images) for images in torch.split(digits.test_images, 120)]
    return float((torch.cat(outputs).argmax(1) == digits.test_labels).float().mean())


def _train(
    name: str, model: nn.Module, digits: Digits, options: DemoOptions, report: Progress
) -> TrainingStep:
    """Train `model`, and return a step on the first images that carries its optimizer."""
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    total = options.epochs * (len(digits.train_labels) // options.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rate(done / total))
    model.train()
    for done, (images, labels) in enumerate(_batches(digits, options), start=1):
        TrainingStep(model, optimizer, F.cross_entropy, images, labels)()
        schedule.step()
        report(name, done, total)
    images = _channels_last(digits.train_images[: options.batch_size])
    labels = digits.train_labels[: options.batch_size]
    return TrainingStep(model, optimizer, F.cross_entropy, images, labels)


def _rate(progress: float) -> float:
    """The learning rate as a part of its maximum: linear over a fifth of training, then cosine."""
    if progress < 0.2:
        return 0.05 + 0.95 * progress / 0.2
    return 0.5 * (1 + math.cos(math.pi * (progress - 0.2) / 0.8))


def _batches(digits: Digits, options: DemoOptions) -> Iterator[tuple[Tensor, Tensor]]:
    """The same whole batches for every network: shuffled each epoch, moved by up to a pixel."""
    generator = torch.Generator().manual_seed(options.seed)
    size = options.batch_size
    background = float(digits.train_images.min())
    for _ in range(options.epochs):
        order = torch.randperm(len(digits.train_labels), generator=generator)
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            framed = F.pad(digits.train_images[chosen], (1, 1, 1, 1), value=background)
            top, left = torch.randint(3, (2,), generator=generator).tolist()
            images = framed[:, :, top : top + _IMAGE_SIZE, left : left + _IMAGE_SIZE]
            yield _channels_last(images), digits.train_labels[chosen]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _table(result: DemoResult) -> Table:
    dense, sparse = result.dense, result.sparse
    points = 100 * (sparse.accuracy - dense.accuracy)
    all_work = sparse.multiply_adds + sparse.search
    rows = [
        (
            "accuracy on held-out digits",
            f"{100 * dense.accuracy:.2f} %",
            f"{100 * sparse.accuracy:.2f} %",
            f"{points:+.2f} points",
        ),
        (
            "time of a training step",
            f"{1000 * dense.step_seconds:.1f} ms",
            f"{1000 * sparse.step_seconds:.1f} ms",
            format_ratio(dense.step_seconds, sparse.step_seconds, better="faster", worse="slower"),
        ),
        (
            "kept for backward",
            format_bytes(dense.kept_bytes),
            format_bytes(sparse.kept_bytes),
            format_ratio(dense.kept_bytes, sparse.kept_bytes),
        ),
        (
            "multiply-adds of a step",
            format_count(dense.multiply_adds),
            format_count(all_work),
            format_ratio(dense.multiply_adds, all_work),
        ),
        ("  of these for the search", "0", format_count(sparse.search), ""),
        (
            "neurons left out",
            "0 %",
            "-" if sparse.sparsity is None else f"{100 * sparse.sparsity:.1f} %",
            "",
        ),
    ]
    title = (
        f"Digits, {result.options.epochs} epochs, batch {result.options.batch_size}, "
        f"{result.threads} thread{'s' if result.threads != 1 else ''}"
    )
    return comparison_table(title, ("", "dense", "sparse", ""), rows, caption=_verdict(result))


def _verdict(result: DemoResult) -> str:
    dense, sparse = result.dense.step_seconds, result.sparse.step_seconds
    ratio = format_ratio(dense, sparse, better="faster", worse="slower")
    if result.backend == "reference":
        why = "The reference backend computes every neuron and masks it: right, but never faster."
    elif result.sparse.sparsity is None:
        why = "No layer was made sparse."
    elif sparse > dense:
        why = "On this network and machine sparse does not pay."
    else:
        why = "Search, backward and optimizer are included."
    return f"The sparse step is {ratio} than eager PyTorch (channels-last). {why}"
