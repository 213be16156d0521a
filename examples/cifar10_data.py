"""CIFAR-10 from a path: the python or binary batches, or an .npz of JPEG files; and its batches."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["CLASSES", "Cifar10", "DataError", "batches", "load", "normalized"]

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

SIZE = 32
_BYTES = 3 * SIZE * SIZE
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_BORDER = 4  # pixels by which a training image may be moved
_TRAIN = tuple(f"data_batch_{i}" for i in range(1, 6))
_FOLDERS = ("", "cifar-10-batches-py", "cifar-10-batches-bin")


class DataError(Exception):
    """The data set is not there, or not what it should be."""


@dataclass(frozen=True)
class Cifar10:
    """Images [N, 3, 32, 32] as bytes and labels [N], for training and for testing."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def limited(self, train: int | None, test: int | None) -> Cifar10:
        """The first images of a fixed shuffle."""
        parts = []
        for images, labels, count in (
            (self.train_images, self.train_labels, train),
            (self.test_images, self.test_labels, test),
        ):
            generator = torch.Generator().manual_seed(0)
            chosen = torch.randperm(len(labels), generator=generator)[:count]
            parts += [images[chosen], labels[chosen]]
        return Cifar10(*parts)


def load(path: Path) -> Cifar10:
    """Read the data set.

    Args:
        path: an .npz with JPEG files end to end (`train_jpeg`, `train_offset`, `train_label`, and
            the same for `test`), or the folder of the python or binary version.

    Raises:
        DataError: nothing is found there, or it is damaged.
    """
    try:
        if path.suffix == ".npz":
            return _from_npz(path)
        for folder in _FOLDERS:
            for suffix, read in (("", _python_batch), (".bin", _binary_batch)):
                if (path / folder / f"{_TRAIN[0]}{suffix}").is_file():
                    return _from_batches(path / folder, suffix, read)
    except (OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    raise DataError(
        f"no CIFAR-10 in {path}: expected an .npz file, or a folder with data_batch_1 (python "
        "version) or data_batch_1.bin (binary version) in it"
    )


def batches(
    images: Tensor, labels: Tensor, size: int, generator: torch.Generator, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """One epoch, shuffled; each image moved by up to four pixels and mirrored half of the time.

    The last, smaller batch is included, unless it is a single image: that has no batch statistics.
    """
    order = torch.randperm(len(labels), generator=generator)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        if len(chosen) > 1:
            yield _moved(images[chosen], generator, device), labels[chosen].to(device)


def normalized(images: Tensor, device: torch.device) -> Tensor:
    """Bytes as float32 with the training set's mean and deviation, channels last."""
    mean = torch.tensor(_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(_STD, device=device).view(1, 3, 1, 1)
    scaled = (images.to(device).to(torch.float32) / 255 - mean) / std
    return scaled.contiguous(memory_format=torch.channels_last)


def _moved(images: Tensor, generator: torch.Generator, device: torch.device) -> Tensor:
    count, reach = len(images), 2 * _BORDER + 1
    framed = F.pad(normalized(images, device), (_BORDER,) * 4)
    top, left = torch.randint(reach, (2, count, 1, 1), generator=generator)
    flip = torch.rand(count, 1, 1, generator=generator) < 0.5
    along = torch.arange(SIZE)
    columns = torch.where(flip, SIZE - 1 - along, along)
    rows = (top + along.view(1, SIZE, 1)).to(device)
    columns = (left + columns.view(count, 1, SIZE)).to(device)
    sample = torch.arange(count, device=device).view(-1, 1, 1)
    return framed.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 3, 1, 2)


def _from_npz(path: Path) -> Cifar10:
    parts = []
    with np.load(path, allow_pickle=False) as file:
        for split in ("train", "test"):
            jpeg, offset = file[f"{split}_jpeg"], file[f"{split}_offset"]
            labels = torch.from_numpy(file[f"{split}_label"].astype(np.int64))
            if len(offset) != len(labels) + 1 or int(offset[-1]) > len(jpeg):
                raise DataError(f"{path}: the {split} images and labels do not belong together")
            parts += [_decoded(jpeg, offset), labels]
    return Cifar10(*parts)


def _decoded(jpeg: NDArray[np.uint8], offset: NDArray[np.int64]) -> Tensor:
    from PIL import Image

    out = np.empty((len(offset) - 1, SIZE, SIZE, 3), dtype=np.uint8)

    def decode(i: int) -> None:
        data = jpeg[offset[i] : offset[i + 1]].tobytes()
        with Image.open(io.BytesIO(data)) as image:
            out[i] = np.asarray(image.convert("RGB"))

    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, range(len(out)), chunksize=256))
    return torch.from_numpy(out).permute(0, 3, 1, 2).contiguous()


def _from_batches(folder: Path, suffix: str, read: Any) -> Cifar10:
    train = [read(folder / f"{name}{suffix}") for name in _TRAIN]
    images, labels = (torch.cat(part) for part in zip(*train, strict=True))
    return Cifar10(images, labels, *read(folder / f"test_batch{suffix}"))


def _binary_batch(path: Path) -> tuple[Tensor, Tensor]:
    records = torch.from_numpy(np.fromfile(path, dtype=np.uint8))
    if len(records) == 0 or len(records) % (_BYTES + 1):
        raise DataError(f"{path} is not a whole number of images")
    records = records.view(-1, _BYTES + 1)
    return records[:, 1:].reshape(-1, 3, SIZE, SIZE), records[:, 0].to(torch.int64)


class _ArraysOnly(pickle.Unpickler):
    """A pickle may name any function; these files need those that rebuild NumPy arrays."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {"_reconstruct", "ndarray", "dtype", "_frombuffer", "scalar"}
        if module.split(".")[0] == "numpy" and name in allowed:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            return super().find_class(module, name)
        raise DataError(f"the file asks for {module}.{name}: it is no CIFAR-10 batch")


def _python_batch(path: Path) -> tuple[Tensor, Tensor]:
    with path.open("rb") as file:
        content = _ArraysOnly(file, encoding="bytes").load()
    images = torch.from_numpy(np.array(content[b"data"], dtype=np.uint8))
    labels = torch.tensor(content[b"labels"], dtype=torch.int64)
    if images.shape != (len(labels), _BYTES):
        raise DataError(f"{path} holds {tuple(images.shape)} bytes for {len(labels)} labels")
    return images.view(-1, 3, SIZE, SIZE), labels
