"""`dsgc explain` and `dsgc inspect`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import dsgc
from dsgc import zoo
from dsgc.cli import app

SMALL = ["vgg8", "--width", "0.25", "--batch", "64"]


def invoked(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "160"})
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def test_explain() -> None:
    text = invoked("explain", *SMALL)
    assert "features.3" in text
    assert "dense: features.0: a first convolution" in text
    found = json.loads(invoked("explain", *SMALL, "--json"))
    assert [layer["name"] for layer in found["layers"]][:2] == ["features.0", "features.3"]
    assert invoked("explain", *SMALL, "--markdown").startswith("### VGG8 at sparsity 0.8")


def test_mistakes_are_said() -> None:
    assert "no network is called" in invoked("explain", "vgg9", code=2)
    assert "there is no graph 'packed'" in invoked("inspect", *SMALL, "--graph", "packed", code=1)
    nowhere = invoked("inspect", *SMALL, "--html", "nowhere/page.html", code=2)
    assert "not a directory" in nowhere
    for two in (["--graph", "lowered", "--json"], ["--graph", "lowered", "--measure"]):
        assert "do not go together" in invoked("inspect", *SMALL, *two, code=2)
    assert "go together" in invoked("explain", *SMALL, "--json", "--markdown", code=2)
    missing = invoked("inspect", *SMALL, "--firings", "nowhere.st", code=1)
    assert "there is no file" in missing


def test_graphs_are_printed() -> None:
    text = invoked("inspect", *SMALL, "--graph", "semantic")
    assert "masked_conv2d(" in text
    assert "# features.3" in text


def test_layers_are_measured() -> None:
    found = json.loads(invoked("inspect", *SMALL, "--measure", "--json"))
    assert found["mode"] == "training"
    assert all(layer["dense_forward"] > 0 for layer in found["layers"])


@pytest.mark.timeout(600)
def test_a_page_of_a_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = zoo.build("vgg8", width=0.25)
    x = torch.randn(64, 3, 32, 32)
    recorder = dsgc.FiringRecorder(dsgc.compile(model, 0.8, example_inputs=x))
    recorder.observe(x)
    recorder.save(tmp_path / "run.firings")
    page = tmp_path / "page.html"
    firings = str(tmp_path / "run.firings")
    invoked("inspect", *SMALL, "--html", str(page), "--firings", firings)
    text = page.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>")
    assert "<title>VGG8" in text
    assert not list(tmp_path.glob(".page*"))


@pytest.mark.timeout(600)
def test_a_page_of_an_artifact(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 128), nn.ReLU()).eval()
    x = torch.randn(8, 64)
    config = dsgc.SparsityConfig(rules={"2": 0.75})
    place = tmp_path / "model.dsgc"
    dsgc.export(dsgc.compile(model, config=config, example_inputs=x), place, x)
    page = tmp_path / "page.html"
    invoked("inspect", str(place), "--html", str(page))
    assert "<title>model.dsgc" in page.read_text(encoding="utf-8")
    assert "only 'lowered'" in invoked("inspect", str(place), "--graph", "semantic", code=1)
