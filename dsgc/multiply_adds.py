"""Counting the multiply-adds that a training step really does, by watching the operators it calls.

A product counts where both factors exist: pixels of the padding never do, and packed operators
multiply selected inputs with selected outputs only. Zeros that a ReLU leaves in a selected place do
count, since the kernels multiply them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dsgc.ops import ceil_div, selection_to_mask

__all__ = ["MultiplyAdds", "count_multiply_adds"]


@dataclass
class MultiplyAdds:
    """What a step multiplied, in multiply-adds of convolutions and matrix products.

    Attributes:
        done: of the network itself, forward and backward, layers that stayed dense included.
        search: of choosing what to compute.
        dense: of the same network without sparsity.
        sparse_layers: dense forward multiply-adds of the layers that were sparse.
        selected: the same, times the fraction of the layer's output neurons that was selected.
    """

    done: int = 0
    search: int = 0
    dense: int = 0
    sparse_layers: int = 0
    selected: float = 0.0

    @property
    def sparsity(self) -> float | None:
        """Achieved sparsity of the sparse layers' neurons, weighted by dense multiply-adds.

        None where no packed operator ran.
        """
        return 1.0 - self.selected / self.sparse_layers if self.sparse_layers else None


def count_multiply_adds(step: Callable[[], object]) -> MultiplyAdds:
    """Run `step` once and count its multiply-adds. Its backward must run in the calling thread."""
    counter = _Counter()
    with counter:
        step()
    return counter.total


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = MultiplyAdds()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        values = dict(zip((a.name for a in func._schema.arguments), args, strict=False))
        values.update(kwargs or {})
        namespace, name = func.namespace, func._opname
        if namespace == "aten":
            self._dense(_dense_multiply_adds(name, values))
        elif namespace.startswith("dsgc"):
            self._packed(name, values)
        return func(*args, **(kwargs or {}))

    def _packed(self, name: str, values: Mapping[str, Any]) -> None:
        if name == "drs_scores":
            self.total.search += _search(values)
        if name.startswith("stem_conv2d"):
            self._dense(_stem(name, values))
        if name.startswith("dense_linear"):
            self._dense(_linear(name, values))
        if name not in ("conv2d", "conv2d_backward"):
            return
        weight = values["weight"]
        inputs = _input_channels(values)
        height, width = values["size"][1:]
        full = torch.full((len(inputs), 1, height, width), float(weight.shape[1]))
        dense = _window_sums(full, weight.shape[2:], values)
        outputs = _active_channels(
            values["y_index"],
            values["y_rowptr"],
            values["block"],
            weight.shape[0],
            (dense.shape[2], dense.shape[3]),
        )
        done = int((_window_sums(inputs, weight.shape[2:], values) * outputs).sum())
        everything = int(dense.sum()) * int(weight.shape[0])
        # Backward data and backward weight each repeat the forward's products.
        times = 1
        if name == "conv2d_backward":
            times = int(values["need_x"]) + int(values["need_weight"])
        else:
            self.total.sparse_layers += everything
            self.total.selected += everything * float(outputs.mean()) / weight.shape[0]
        self.total.done += done * times
        self.total.dense += everything * times

    def _dense(self, amount: int) -> None:
        """Note multiply-adds of which none can be left out."""
        self.total.done += amount
        self.total.dense += amount


def _linear(name: str, values: Mapping[str, Any]) -> int:
    backward = name != "dense_linear"
    times = int(values["need_x"]) + int(values["need_weight"]) if backward else 1
    return int(values["x"].numel()) * int(values["weight"].shape[0]) * times


def _stem(name: str, values: Mapping[str, Any]) -> int:
    backward = name != "stem_conv2d"
    wanted = [values["need_x"], values["need_weight"]] if backward else []
    return _dense_multiply_adds(
        "convolution_backward" if backward else "convolution",
        {**values, "input": values["x"], "transposed": False, "output_mask": wanted},
    )


def _dense_multiply_adds(name: str, values: Mapping[str, Any]) -> int:
    """Multiply-adds of one operator of PyTorch; 0 for whatever is neither matrix nor window."""
    if name in ("mm", "bmm"):
        return int(values["self"].numel()) * int(values["mat2"].shape[-1])
    if name == "addmm":
        return int(values["mat1"].numel()) * int(values["mat2"].shape[-1])
    if name not in ("convolution", "convolution_backward") or values["transposed"]:
        return 0
    image, weight = values["input"], values["weight"]
    if image.dim() != 4:
        return 0
    channels = torch.full((1, 1, *image.shape[2:]), float(weight.shape[1]))
    sums = _window_sums(channels, weight.shape[2:], values)
    amount = int(sums.sum()) * int(weight.shape[0]) * int(image.shape[0])
    return amount * (1 if name == "convolution" else sum(values["output_mask"][:2]))


def _search(values: Mapping[str, Any]) -> int:
    """Multiply-adds of `drs_scores`: project the input, then compare with projected weights."""
    projection, channels = values["projection"], values["out_channels"]
    inputs = _input_channels(values)
    reduced = int(projection.shape[1])
    sums = _window_sums(inputs, values["kernel"], values)
    if values["projected"].dim() == 2:  # whole windows are projected
        positions = sums.numel()
        return int(sums.sum()) * reduced + positions * reduced * int(channels)
    pixels = _window_sums(torch.ones_like(inputs), values["kernel"], values)
    return int(inputs.sum()) * reduced + int(pixels.sum()) * reduced * int(channels)


def _input_channels(values: Mapping[str, Any]) -> Tensor:
    """How many channels each pixel of the input has: float64 [N, 1, H, W]."""
    channels, height, width = values["size"]
    x, index = values["x"], values["index"]
    if index is None:
        return torch.full((x.shape[0], 1, height, width), float(channels), dtype=torch.float64)
    return _active_channels(index, values["rowptr"], x.shape[1], channels, (height, width))


def _active_channels(
    index: Tensor, rowptr: Tensor, block: int, channels: int, image: tuple[int, int]
) -> Tensor:
    """How many of `channels` are selected at each position: float64 [N, 1, H, W]."""
    blocks = ceil_div(channels, block)
    sizes = torch.full((blocks,), float(block), dtype=torch.float64)
    sizes[-1] = channels - block * (blocks - 1)
    mask = selection_to_mask(index, rowptr, blocks, *image).cpu()
    return torch.einsum("nbhw,b->nhw", mask.to(torch.float64), sizes).unsqueeze(1)


def _window_sums(image: Tensor, kernel: Sequence[int], geometry: Mapping[str, Any]) -> Tensor:
    """Sum of `image` [N, 1, H, W] over the window of every output: [N, 1, Ho, Wo]."""
    return F.conv2d(
        image.to(torch.float64),
        torch.ones(1, 1, *kernel, dtype=torch.float64),
        stride=geometry["stride"],
        padding=geometry["padding"],
        dilation=geometry["dilation"],
    )
