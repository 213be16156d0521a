"""What `dsgc.measure` and `dsgc.multiply_adds` count, on cases that are counted by hand."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsgc.measure import (
    Timing,
    TrainingStep,
    format_bytes,
    format_count,
    format_ratio,
    interleaved,
    kept_for_backward,
)
from dsgc.multiply_adds import count_multiply_adds
from dsgc.ops import mask_to_selection


def test_kept_for_backward_of_two_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(10, 8)
    # The input, and the output of the ReLU, which both the ReLU and the next layer save.
    assert kept_for_backward(lambda: model(x).sum(), model) == 4 * 10 * (8 + 16)


def test_kept_for_backward_counts_a_view_as_its_whole_storage() -> None:
    model = nn.Linear(4, 1)
    x = torch.randn(100, 4)
    assert kept_for_backward(lambda: model(x[:2]).sum(), model) == 4 * 100 * 4


def test_interleaved_runs_in_turn_and_drops_the_warmup() -> None:
    order: list[str] = []
    timings = interleaved(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmup=1
    )
    assert sorted(order) == ["a"] * 4 + ["b"] * 4
    assert order[2:] == ["a", "b", "b", "a", "a", "b"]
    assert {name: len(timing.seconds) for name, timing in timings.items()} == {"a": 3, "b": 3}


def test_interleaved_measures_what_each_took() -> None:
    timings = interleaved({"slow": lambda: time.sleep(0.01), "fast": lambda: None}, rounds=1)
    assert timings["slow"].median >= 0.01 > timings["fast"].median


def test_median_and_quartiles() -> None:
    timing = Timing((5.0, 1.0, 3.0, 2.0, 4.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 4.0)
    assert Timing((2.0,)).quartiles == (2.0, 2.0)


def test_a_training_step_trains() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 0, 1, 0])
    step = TrainingStep(model, optimizer, F.cross_entropy, inputs, targets)
    before = step.forward().item()
    phases = step()
    assert len(phases) == 3
    assert min(phases) >= 0
    assert step.forward().item() < before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_bytes(512), "512 B"),
        (format_bytes(279_000_000), "279.0 MB"),
        (format_bytes(2.5e9), "2.50 GB"),
        (format_count(0), "0"),
        (format_count(1_230_000_000), "1.23 G"),
        (format_ratio(4.0, 2.0), "2.00x fewer"),
        (format_ratio(2.0, 3.0, worse="slower"), "1.50x slower"),
        (format_ratio(0.0, 1.0), "-"),
    ],
)
def test_formats(text: str, expected: str) -> None:
    assert text == expected


def test_multiply_adds_of_dense_layers() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 5))
    x = torch.randn(2, 3, 4, 4)
    counted = count_multiply_adds(lambda: model(x).sum().backward())
    # 3x3 windows on a padded 4x4 image: 4 corners see 4 pixels, 8 edges 6, the inner 4 see 9.
    pixels = 4 * 4 + 8 * 6 + 4 * 9
    convolution, linear = 2 * pixels * 3 * 8, 2 * 128 * 5
    # No gradient of the image: the convolution has two passes, the linear layer three.
    assert counted.done == counted.dense == 2 * convolution + 3 * linear
    assert counted.search == 0
    assert counted.sparsity is None


def _products(x: Tensor, y: Tensor, padding: int) -> int:
    """Pairs of a selected input and a selected output under a 3x3 kernel, one by one."""
    batch, _, height, width = x.shape
    found = 0
    for n in range(batch):
        for h in range(height):
            for w in range(width):
                for r in range(-padding, padding + 1):
                    for s in range(-padding, padding + 1):
                        if 0 <= h + r < height and 0 <= w + s < width:
                            found += int(y[n, :, h, w].sum()) * int(x[n, :, h + r, w + s].sum())
    return found


@pytest.mark.parametrize("block", [1, 8])
def test_multiply_adds_of_a_packed_convolution(block: int) -> None:
    batch, channels, outputs, size = 2, 20, 12, 3
    x_mask = torch.rand(batch, -(-channels // block), size, size) < 0.4
    y_mask = torch.rand(batch, -(-outputs // block), size, size) < 0.4
    x_index, x_rowptr = mask_to_selection(x_mask, bits=block == 1)
    y_index, y_rowptr = mask_to_selection(y_mask, bits=block == 1)
    dense = torch.randn(batch, channels, size, size)
    weight = torch.randn(outputs, channels, 3, 3, requires_grad=True)
    values = torch.ops.dsgc.pack(dense, x_index, x_rowptr, block).requires_grad_()

    def step() -> None:
        y = torch.ops.dsgc.conv2d(
            *(values, x_index, x_rowptr, None, None, "relu", (channels, size, size)),
            *(weight, None, y_index, y_rowptr, block, (1, 1), (1, 1), (1, 1)),
        )
        y.sum().backward()

    counted = count_multiply_adds(step)
    x_channels = x_mask.repeat_interleave(block, 1)[:, :channels]
    y_channels = y_mask.repeat_interleave(block, 1)[:, :outputs]
    assert counted.done == 3 * _products(x_channels, y_channels, 1)
    everything = _products(torch.ones_like(x_channels), torch.ones_like(y_channels), 1)
    assert counted.dense == 3 * everything
    assert counted.sparsity == pytest.approx(1 - float(y_channels.float().mean()))


@pytest.mark.parametrize("block", [1, 8])
def test_multiply_adds_of_the_search(block: int) -> None:
    batch, channels, outputs, size, reduced = 2, 16, 8, 3, 8
    pixels = 49  # pixels under all 3x3 windows of a padded 3x3 image: 4*4 + 4*6 + 9
    if block == 1:  # every window is projected as a whole
        projection = torch.ones(channels * 9, reduced, dtype=torch.int8)
        projected, unit = torch.randn(reduced, outputs), None
        expected = pixels * channels * reduced + size**2 * reduced * outputs
    else:  # every pixel is projected once
        projection = torch.ones(channels, reduced, dtype=torch.int8)
        projected, unit = torch.ones(9, reduced, 64, dtype=torch.int8), torch.rand(64)
        expected = size**2 * channels * reduced + pixels * reduced * outputs
    image = torch.randn(batch, channels, size, size)
    counted = count_multiply_adds(
        lambda: torch.ops.dsgc.drs_scores(
            *(image, None, None, None, None, "identity", (channels, size, size)),
            *(projection, projected, unit, None, outputs, block, (3, 3), (1, 1), (1, 1), (1, 1)),
        )
    )
    assert counted.search == batch * expected
    assert counted.done == 0
