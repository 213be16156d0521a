"""A training step of VGG8 on CIFAR-sized images: `python -m benchmarks.vgg8_step --help`."""

from __future__ import annotations

from benchmarks.run import main

if __name__ == "__main__":
    main(network="vgg8")
