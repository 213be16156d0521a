"""Graphs whose shapes depend on the batch in more than the first extent serve one batch size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dsgc
from tests.every_block import Net, pair


class Positions(Net):
    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 32, 8, 8))

    def forward(self, x: Tensor) -> Any:
        return self.answer(F.relu(self.normed(x) + self.place))


class Mean(Net):
    def forward(self, x: Tensor) -> Any:
        x = self.norm(self.first(x))
        return self.answer(F.relu(x + x.mean(0, keepdim=True)))


class FirstSample(Net):
    def forward(self, x: Tensor) -> Any:
        return self.answer(self.features(x) + self.features(x[:1]))


class Squeezed(Net):
    def forward(self, x: Tensor) -> Any:
        return self.head(F.adaptive_avg_pool2d(self.second(self.features(x)), 1).squeeze())


class SequenceFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: Tensor) -> Any:
        x = x.reshape(-1, 16, 64).transpose(0, 1)
        return self.narrow(F.relu(self.wide(x))).transpose(0, 1)


def agree(dense: nn.Module, sparse: nn.Module, *inputs: Tensor) -> None:
    expected = dense(*inputs)
    torch.testing.assert_close(sparse(*inputs), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(4, 1, 3), (1, 4, 1), (8, 4, 2)])
@pytest.mark.parametrize(
    "kind", [Net, Positions, Mean, FirstSample, Squeezed, SequenceFirst], ids=lambda k: k.__name__
)
def test_every_batch_has_the_dense_results(kind: type[nn.Module], sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    dense, sparse = pair(kind())
    assert any(d.sparse for d in called(sparse, sizes[0], dense).decisions.values())
    for training in (True, False):
        dense.train(training)
        sparse.train(training)
        for size in sizes:
            with torch.set_grad_enabled(training):
                agree(dense, sparse, torch.randn(size, 16, 8, 8))
    assert sparse.untraced == {}


def called(sparse: dsgc.SparseModule, size: int, dense: nn.Module) -> dsgc.SparseModule:
    agree(dense, sparse, torch.randn(size, 16, 8, 8))
    return sparse


def test_one_graph_serves_all_batches_where_it_can() -> None:
    dense, sparse = pair(Net())
    graphs = set()
    for size in (4, 1, 7):
        agree(dense, sparse, torch.randn(size, 16, 8, 8))
        graphs.add(sparse.semantic_graph)
    assert len(graphs) == 1


def test_a_second_input_of_one_sample() -> None:
    class Conditioned(Net):
        def forward(self, x: Tensor, by: Tensor) -> Any:  # type: ignore[override]
            return self.answer(self.features(x) + self.norm(self.first(by)))

    dense, sparse = pair(Conditioned())
    for batch, others in ((4, 4), (4, 1), (1, 1), (4, 1), (2, 2)):
        agree(dense, sparse, torch.randn(batch, 16, 8, 8), torch.randn(others, 16, 8, 8))


def test_such_graphs_are_exported_for_their_batch(tmp_path: Path) -> None:
    _, sparse = pair(SequenceFirst())
    x = torch.randn(4, 16, 8, 8)
    for export in (dsgc.export, dsgc.export_onnx):
        with pytest.raises(dsgc.ExportError, match="dynamic_batch=False"):
            export(sparse, tmp_path / "model", x)
    assert list(tmp_path.iterdir()) == []
