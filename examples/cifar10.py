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
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from cifar10_data import DataError, load
from cifar10_run import Epoch, Options, Run
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import dsgc
from dsgc import zoo

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
    "make_sparse",
)


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
        *(given.train_images, given.test_images, given.start, given.group, given.distill),
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
    add("--make-sparse", nargs="+", metavar="LAYER", help="layers to make sparse even at a loss")
    add("--share-pool", action="store_const", const=True, help="one selection a pooling window")
    add("--start", metavar="RUN", help="folder of a dense run whose parameters to begin with")
    add("--group", action="store_true", help="reorder channels first: dsgc.group_neurons")
    add("--distill", metavar="RUN", help="folder of a dense run to learn from beside the labels")
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
