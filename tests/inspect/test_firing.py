"""Which blocks fire: counted, saved, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dsgc
from dsgc.inspect.firing import load_firings
from tests.inspect.networks import X, residual

LABELS = torch.tensor([0, 1, 1, 2])
CLASSES = ("cat", "dog", "ship", "frog")


def recorded() -> dsgc.FiringRecorder:
    recorder = dsgc.FiringRecorder(residual(), CLASSES)
    recorder.observe(X, labels=LABELS)
    return recorder


def test_pictures_are_what_was_selected() -> None:
    recorder = recorded()
    mask = recorder.sparse.selections(X)["first"].double()
    pictures = {picture.title: picture for picture in recorder.pictures()["first"]}
    by_class = torch.tensor(pictures["By class of input"].values, dtype=torch.float64)
    assert pictures["By class of input"].rows == ("cat", "dog", "ship")
    torch.testing.assert_close(by_class[0], mask[0].mean((1, 2)))
    torch.testing.assert_close(by_class[1], mask[1:3].mean((0, 2, 3)))
    busiest = int(mask.sum((0, 2, 3)).argmax())
    position = torch.tensor(pictures[f"Block {busiest}, by position"].values, dtype=torch.float64)
    torch.testing.assert_close(position, mask[:, busiest].mean(0))
    assert "Over training" not in pictures


def test_training_is_followed() -> None:
    sparse = residual().train()
    recorder = dsgc.FiringRecorder(sparse)
    optimizer = torch.optim.SGD(sparse.parameters(), 0.5)
    for _ in range(3):
        recorder.observe(X)
        sparse(X).square().sum().backward()
        optimizer.step()
    (picture,) = (one for one in recorder.pictures()["second"] if one.title == "Over training")
    assert picture.rows == ("step 0", "step 1", "step 2")
    assert len(picture.values) == 3
    assert picture.values[0] != picture.values[2]
    assert all(sum(row) == pytest.approx(1.0) for row in picture.values)  # one of four blocks wins
    assert sparse.training


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    recorder = recorded()
    recorder.observe(X * 2, labels=LABELS)
    recorder.save(tmp_path / "run.firings")
    assert load_firings(tmp_path / "run.firings") == recorder.pictures()
    again = dsgc.FiringRecorder(recorder.sparse, CLASSES)
    again.restore(tmp_path / "run.firings")
    again.observe(X)
    assert again.layers["first"].samples == 12
    assert len(again.layers["first"].steps) == 3
    with pytest.raises(dsgc.InputError, match="is of the classes"):
        dsgc.FiringRecorder(recorder.sparse).restore(tmp_path / "run.firings")


def test_mistakes(tmp_path: Path) -> None:
    recorder = recorded()
    with pytest.raises(dsgc.InputError, match="4 numbers below 4"):
        recorder.observe(X, labels=torch.tensor([0, 1, 2, 4]))
    with pytest.raises(dsgc.InputError, match="one a sample"):
        recorder.observe(X, labels=LABELS[:2])
    with pytest.raises(dsgc.InputError, match="need names"):
        dsgc.FiringRecorder(residual()).observe(X, labels=LABELS)
    assert recorder.layers["first"].samples == 4
    with pytest.raises(FileNotFoundError):
        load_firings(tmp_path / "nowhere")
    (tmp_path / "text").write_text("no safetensors, by far")
    with pytest.raises(dsgc.InputError, match="was not written by"):
        load_firings(tmp_path / "text")
    from safetensors.torch import save_file

    save_file({"a": X}, tmp_path / "other")
    with pytest.raises(dsgc.InputError, match="was not written by"):
        load_firings(tmp_path / "other")


def test_classes_are_counted_by_layer() -> None:
    recorder = recorded()
    for x in (X, X[..., :-2, :-2]):  # maps of another size begin anew
        recorder.observe(x, labels=LABELS)
        layer = recorder.layers["first"]
        winners = float(recorder.sparse.selections(x)["first"].double().mean((0, 2, 3)).sum())
        seen = layer.counts > 0
        shares = layer.classes[seen].sum(1) / layer.counts[seen]
        assert shares.tolist() == pytest.approx([winners] * int(seen.sum()))


@pytest.mark.parametrize("labels", [torch.tensor([0.9, 0, 0, 0]), torch.zeros(0), [0, 1]])
def test_labels_that_are_none(labels: Any) -> None:
    with pytest.raises(dsgc.InputError, match="labels must be 4 numbers"):
        recorded().observe(X, labels=labels)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot be written"):
        recorded().save(tmp_path / "none" / "firings")
