"""Cases for the operator tests: odd shapes drawn by hypothesis, and what dense PyTorch says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from dsgc.ops import conv_output_size, expand_mask, mask_to_selection, pool_output_size

ACTS = ("identity", "relu", "affine", "affine_relu", "relu_affine")
BLOCKS = (1, 8, 16)

Pair = tuple[int, int]


@dataclass(frozen=True)
class Namespace:
    """Kernels under test: their operators, the dtype they compute in, and how exactly."""

    name: str
    dtype: torch.dtype
    tolerance: float

    @staticmethod
    def named(name: str) -> Namespace:
        """The kernels of `torch.ops.<name>`, registered first where they are generated ones."""
        if name == "dsgc":
            return Namespace(name, torch.float64, 1e-10)
        from dsgc.codegen import cpu_kernels

        cpu_kernels()
        return Namespace(name, torch.float32, 2e-4)

    @property
    def ops(self) -> Any:
        """torch.ops.<name>."""
        return getattr(torch.ops, self.name)

    def check(self, actual: Tensor | None, expected: Tensor | None, what: str = "") -> None:
        """Fail unless both are equal up to the tolerance, relative to the largest entry."""
        if actual is None or expected is None:
            assert actual is expected, what
            return
        assert actual.shape == expected.shape, what
        scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
        torch.testing.assert_close(
            actual, expected.to(actual.dtype), rtol=0, atol=self.tolerance * scale,
            msg=lambda text: f"{what}: {text}",
        )  # fmt: skip


@dataclass
class Packed:
    """One activation in both forms: dense, with the entries that count, and packed.

    `plain` and `packed_x` are leaves with the same numbers; scale and shift are leaves too.
    """

    x: Tensor
    mask: Tensor | None
    block: int
    act: str
    scale: Tensor | None
    shift: Tensor | None

    @property
    def size(self) -> list[int]:
        """[C, H, W]."""
        return list(self.x.shape[1:])

    @property
    def selection(self) -> tuple[Tensor | None, Tensor | None]:
        """(index, rowptr), a bitmask for blocks of one channel; Nones for a dense input."""
        if self.mask is None:
            return None, None
        return mask_to_selection(self.mask, self.block == 1)

    @property
    def leaves(self) -> list[Tensor]:
        """Everything a gradient is asked for."""
        return [t for t in (self.x, self.scale, self.shift) if t is not None]

    def arguments(self, ops: Any) -> tuple[Any, ...]:
        """The seven arguments of an operator."""
        index, rowptr = self.selection
        x = self.x if index is None else ops.pack(self.x, index, rowptr, self.block)
        return x, index, rowptr, self.scale, self.shift, self.act, self.size

    def dense(self) -> Tensor:
        """What the arguments stand for, by plain differentiable PyTorch."""
        x = self.x
        if self.act in ("relu", "relu_affine"):
            x = x.relu()
        if self.scale is not None and self.shift is not None:
            x = x * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)
        if self.act == "affine_relu":
            x = x.relu()
        if self.mask is None:
            return x
        return x * expand_mask(self.mask, self.block, self.x.shape[1])


def scattered(x: Tensor) -> Tensor:
    """The same numbers with strides that no kernel expects."""
    wide = x.new_empty(*x.shape[:-1], 2 * x.shape[-1]).transpose(0, 1).contiguous()
    wide.transpose(0, 1)[..., ::2] = x
    return wide.transpose(0, 1)[..., ::2]


@dataclass(frozen=True)
class Source:
    """How to make an activation: block 0 is dense, density how much of a packed one is selected."""

    batch: int
    channels: int
    height: int
    width: int
    block: int
    act: str
    density: float
    scatter: bool
    seed: int

    def build(self, dtype: torch.dtype) -> Packed:
        """The activation, of leaves that require gradients."""
        make = torch.Generator().manual_seed(self.seed)
        shape = (self.batch, self.channels, self.height, self.width)
        x = torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)
        if self.scatter:
            x = scattered(x)
        mask = random_mask(self, self.channels, (self.height, self.width), make)
        scale = shift = None
        if "affine" in self.act:
            both = torch.randn(2, self.channels, generator=make, dtype=torch.float64).to(dtype)
            scale, shift = (v.clone().requires_grad_() for v in both)
        return Packed(x.requires_grad_(), mask, self.block, self.act, scale, shift)


def random_mask(source: Source, channels: int, size: Pair, make: torch.Generator) -> Tensor | None:
    """bool [N, blocks, *size] with `density` set, some positions full and some empty."""
    if source.block == 0:
        return None
    blocks = -(-channels // source.block)
    mask = torch.rand(source.batch, blocks, *size, generator=make) < source.density
    draw = torch.rand(source.batch, 1, *size, generator=make)
    return (mask & (draw > 0.1)) | (draw > 0.95)


def out_mask(batch: int, channels: int, size: Pair, block: int, seed: int) -> Tensor:
    """A random selection of an output."""
    source = Source(batch, channels, *size, block, "identity", 0.4, False, seed)
    mask = random_mask(source, channels, size, torch.Generator().manual_seed(seed + 1))
    assert mask is not None
    return mask


@st.composite
def sources(
    draw: st.DrawFn, blocks: Sequence[int] = (0, *BLOCKS), acts: Sequence[str] = ACTS
) -> Source:
    """Activations of odd sizes; empty batches, empty and full selections among them."""
    return Source(
        batch=draw(st.sampled_from((2, 1, 3, 0))),
        channels=draw(st.sampled_from((20, 16, 3, 33, 8, 1))),
        height=draw(st.integers(1, 7)),
        width=draw(st.integers(1, 7)),
        block=draw(st.sampled_from(tuple(blocks))),
        act=draw(st.sampled_from(tuple(acts))),
        density=draw(st.sampled_from((0.4, 0.0, 1.0))),
        scatter=draw(st.booleans()),
        seed=draw(st.integers(0, 1000)),
    )


@dataclass(frozen=True)
class Convolution:
    """A convolution of a source."""

    source: Source
    neurons: int
    block: int
    bias: bool
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def geometry(self) -> tuple[Pair, Pair, Pair]:
        """(stride, padding, dilation)."""
        return self.stride, self.padding, self.dilation

    @property
    def out_size(self) -> Pair:
        """Height and width of the output."""
        size = (self.source.height, self.source.width)
        return conv_output_size(size, self.kernel, *self.geometry)

    def parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
        """(weight, bias, mask of the output); weight and bias are leaves."""
        make = torch.Generator().manual_seed(self.source.seed + 7)
        shape = (self.neurons, self.source.channels, *self.kernel)
        weight = torch.randn(shape, generator=make, dtype=torch.float64).to(dtype)
        if self.source.scatter:
            weight = scattered(weight)
        bias = torch.randn(self.neurons, generator=make, dtype=torch.float64).to(dtype)
        seed = self.source.seed + 9
        mask = out_mask(self.source.batch, self.neurons, self.out_size, self.block, seed)
        weight.requires_grad_()
        return weight, bias.requires_grad_() if self.bias else None, mask


def _pairs(least: int, most: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def convolutions(draw: st.DrawFn, max_kernel: int = 4) -> Convolution:
    """Convolutions of any window that fits their input, block sizes of both sides independent."""
    source = draw(sources())
    kernel, padding = draw(_pairs(1, max_kernel)), draw(_pairs(0, 2))
    dilation = draw(_pairs(1, 2))
    room = (source.height + 2 * padding[0], source.width + 2 * padding[1])
    kernel = (min(kernel[0], room[0]), min(kernel[1], room[1]))
    dilation = (
        dilation[0] if dilation[0] * (kernel[0] - 1) < room[0] else 1,
        dilation[1] if dilation[1] * (kernel[1] - 1) < room[1] else 1,
    )
    return Convolution(
        source,
        neurons=draw(st.sampled_from((23, 16, 40, 5, 1))),
        block=draw(st.sampled_from(BLOCKS)),
        bias=draw(st.booleans()),
        kernel=kernel,
        stride=draw(_pairs(1, 3)),
        padding=padding,
        dilation=dilation,
    )


@dataclass(frozen=True)
class Pooling:
    """A pooling of a source."""

    source: Source
    mode: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool

    @property
    def window(self) -> tuple[Pair, Pair, Pair, bool]:
        """(kernel, stride, padding, ceil_mode)."""
        return self.kernel, self.stride, self.padding, self.ceil_mode

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The operator's arguments after the activation."""
        return self.mode, *self.window, self.count_include_pad

    @property
    def out_size(self) -> Pair:
        """Height and width of the output."""
        return pool_output_size((self.source.height, self.source.width), *self.window)


@st.composite
def poolings(
    draw: st.DrawFn, blocks: Sequence[int] = BLOCKS, modes: Sequence[str] = ("max", "avg")
) -> Pooling:
    """Poolings whose window fits their input."""
    source = draw(sources(blocks))
    kernel = draw(_pairs(1, 3))
    kernel = (min(kernel[0], source.height), min(kernel[1], source.width))
    return Pooling(
        source,
        mode=draw(st.sampled_from(tuple(modes))),
        kernel=kernel,
        stride=draw(_pairs(1, 3)),
        padding=(draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))),
        ceil_mode=draw(st.booleans()),
        count_include_pad=draw(st.booleans()),
    )


def gradients(output: Tensor, leaves: Sequence[Tensor], seed: int) -> tuple[Tensor | None, ...]:
    """Gradients of a random linear functional of `output`."""
    make = torch.Generator().manual_seed(seed)
    direction = torch.randn(output.shape, generator=make, dtype=torch.float64).to(output.dtype)
    return torch.autograd.grad(output, leaves, direction, retain_graph=True, materialize_grads=True)


def compare(kernels: Namespace, actual: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    """Fail unless two outputs and their gradients with respect to `leaves` agree."""
    kernels.check(actual, expected, "output")
    pairs = zip(gradients(actual, leaves, 3), gradients(expected, leaves, 3), strict=True)
    for i, (got, wanted) in enumerate(pairs):
        kernels.check(got, wanted, f"gradient {i}")
