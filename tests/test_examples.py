"""The examples, run as their users run them."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import runpy
import subprocess
import sys
import tomllib
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = ("--width", "0.25", "--batch", "16", "--threads", "1", "--device", "cpu")
CLASSES, TRAIN, TEST = 10, 40, 20


def run_alone(script: str, *arguments: object) -> None:
    """Run an example in a process of its own, as its users do."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    path = os.pathsep.join([str(EXAMPLES.parent), str(EXAMPLES.parent / "runtime")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Done:
    stdout: str
    stderr: str


def run(script: str, *arguments: object, expect: int = 0) -> Done:
    """Run an example in this process: importing torch takes longer than most of them."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.syspath_prepend(EXAMPLES)
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            err.write(end.code if isinstance(end.code, str) else "")
    assert code == expect, err.getvalue()
    return Done(out.getvalue(), err.getvalue())


def _images(count: int, seed: int) -> tuple[Any, list[int]]:
    """Images [count, 3072] whose brightness tells the class."""
    generator = np.random.default_rng(seed)
    labels = [i % CLASSES for i in range(count)]
    noise = generator.integers(0, 20, (count, 3072))
    return (noise + 23 * np.array(labels)[:, None]).astype(np.uint8), labels


def _batches() -> list[tuple[str, Any, list[int]]]:
    parts = [(f"data_batch_{i}", *_images(TRAIN // 5, i)) for i in range(1, 6)]
    return [*parts, ("test_batch", *_images(TEST, 9))]


@pytest.fixture(params=["python", "binary", "npz"])
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    if request.param == "npz":
        return _npz(folder / "cifar10.npz")
    inner = folder / "cifar-10-batches-py" if request.param == "python" else folder
    inner.mkdir(exist_ok=True)
    for name, images, labels in _batches():
        if request.param == "python":
            content = {b"data": images, b"labels": labels}
            (inner / name).write_bytes(pickle.dumps(content, protocol=2))
        else:
            records = np.concatenate([np.array(labels, np.uint8)[:, None], images], 1)
            records.tofile(inner / f"{name}.bin")
    return folder


def _npz(place: Path) -> Path:
    from PIL import Image

    arrays: dict[str, Any] = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        images, labels = _images(count, len(split))
        files = []
        for image in images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1):
            out = io.BytesIO()
            Image.fromarray(image).save(out, "JPEG")
            files.append(out.getvalue())
        ends = np.cumsum([0] + [len(file) for file in files])
        arrays[f"{split}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{split}_offset"] = ends.astype(np.int64)
        arrays[f"{split}_label"] = np.array(labels, np.uint8)
    np.savez(place, **arrays)
    return place


def test_every_form_of_the_data_set_is_read(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_alone("cifar10.py", data, "--sparsity", 0, "--epochs", 1, "--out", out, *QUICK)
    (epoch,) = json.loads((out / "results.json").read_text())["epochs"]
    assert 0 <= epoch["test_accuracy"] <= 1
    assert epoch["train_loss"] > 0


@pytest.mark.parametrize("data", ["binary"], indirect=True)
@pytest.mark.parametrize(("dense_epochs", "stop_after"), [(0, 1), (2, 2)])
def test_a_stopped_run_ends_as_one_that_was_not(
    data: Path, tmp_path: Path, dense_epochs: int, stop_after: int
) -> None:
    options = ("--width", 0.5, "--sparsity", 0.9, "--rate", 0.02, "--epochs", 3)
    sparse = (*QUICK, *options, "--dense-epochs", dense_epochs)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("cifar10.py", data, *sparse, "--out", whole)
    first = run("cifar10.py", data, *sparse, "--stop-after", stop_after, "--out", parts)
    assert "epoch 1" in first.stderr
    second = run("cifar10.py", data, *sparse, "--out", parts)
    assert "epoch 1:" not in second.stderr
    assert "epoch 3" in second.stderr
    results = [json.loads((out / "results.json").read_text()) for out in (whole, parts)]
    for result in results:
        sparse_epochs = [bool(epoch["layers"]) for epoch in result["epochs"]]
        assert sparse_epochs == [True] * (3 - dense_epochs) + [False] * dense_epochs
        for epoch in result["epochs"]:
            del epoch["seconds"]
    assert results[0] == results[1]
    refused = run("cifar10.py", data, *sparse, "--seed", 1, "--out", parts, expect=2)
    assert "seed" in refused.stderr
    searched = run("cifar10_search.py", data, whole, expect=2 if dense_epochs else 0)
    assert "is not sparse" in searched.stderr if dense_epochs else "svd" in searched.stdout
    run("cifar10_plots.py", whole, parts, "--out", tmp_path / "runs.png")
    assert (tmp_path / "runs.png").stat().st_size > 10_000


@pytest.mark.parametrize("data", ["binary"], indirect=True)
def test_a_run_begins_with_the_parameters_of_a_dense_one(data: Path, tmp_path: Path) -> None:
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    options = (*QUICK, "--width", 0.5, "--epochs", 1, "--rate", 0)
    run("cifar10.py", data, *options, "--sparsity", 0, "--out", dense)
    # One layer is sparse whatever it costs, another never.
    forced = ("--make-sparse", "features.3", "--keep-dense", "features.10")
    begun = (*options, "--sparsity", 0.5, "--start", dense, *forced)
    made = run("cifar10.py", data, *begun, "--group", "--out", sparse)
    assert "kept before" in made.stderr
    before, after = (
        torch.load(out / "checkpoint.pt", weights_only=True)["model"] for out in (dense, sparse)
    )
    assert torch.equal(before["classifier.4.bias"], after["classifier.4.bias"])
    moved, here = before["features.3.weight"].flatten(), after["features.3.weight"].flatten()
    assert not torch.equal(moved, here)
    assert torch.equal(moved.sort().values, here.sort().values)
    layers = json.loads((sparse / "results.json").read_text())["epochs"][0]["layers"]
    assert "features.3" in layers
    assert "features.10" not in layers
    taught = run("cifar10.py", data, *begun, "--distill", dense, "--out", tmp_path / "taught")
    assert "epoch 1" in taught.stderr
    losses = [
        json.loads((out / "results.json").read_text())["epochs"][0]["train_loss"]
        for out in (dense, tmp_path / "taught")
    ]
    assert losses[0] != losses[1]
    refused = run("cifar10.py", data, *begun, "--width", 0.25, "--out", tmp_path / "x", expect=2)
    assert "of width 0.5" in refused.stderr
    refused = run("cifar10.py", data, *options, "--start", sparse, "--out", dense, expect=2)
    assert "take a dense one" in refused.stderr


@pytest.mark.parametrize("data", ["binary"], indirect=True)
def test_accuracy_is_held_against_time(data: Path, tmp_path: Path) -> None:
    options = (*QUICK, "--width", 0.5, "--epochs", 1, "--rate", 0.02)
    dense, sparse = tmp_path / "dense", tmp_path / "sparse"
    run("cifar10.py", data, *options, "--sparsity", 0, "--bf16", "--out", dense)
    run("cifar10.py", data, *options, "--sparsity", 0.9, "--out", sparse)
    checkpoints = [(out / "checkpoint.pt").read_bytes() for out in (dense, sparse)]
    quick = ("--rounds", 2, "--threads", 1, "--out", tmp_path / "frontier")
    made = run("cifar10_frontier.py", data, dense, sparse, *quick)
    content = json.loads((tmp_path / "frontier.json").read_text())
    points = {point["name"]: point for point in content["points"]}
    assert sorted(points) == ["dense", "dense, float32", "sparse"]
    assert all(len(seconds) == 2 for seconds in content["seconds"].values())
    assert 0 < points["sparse"]["multiply_adds"] < points["dense"]["multiply_adds"]
    fastest = min(points.values(), key=lambda point: float(point["step"]))
    (line,) = (one for one in made.stdout.splitlines() if one.startswith(f"| {fastest['name']} |"))
    assert f"**{1000 * fastest['step']:.0f}**" in line
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    assert [(out / "checkpoint.pt").read_bytes() for out in (dense, sparse)] == checkpoints
    missing = run("cifar10_frontier.py", data, tmp_path / "x", expect=2)
    assert "No such file" in missing.stderr


@pytest.mark.parametrize("data", ["python"], indirect=True)
def test_what_cannot_be_read_is_said(data: Path, tmp_path: Path) -> None:
    missing = run("cifar10.py", tmp_path / "nowhere", *QUICK, expect=2)
    assert "no CIFAR-10" in missing.stderr
    batch = data / "cifar-10-batches-py" / "data_batch_2"
    batch.write_bytes(batch.read_bytes()[:100])
    assert "cannot be read" in run("cifar10.py", data, *QUICK, expect=2).stderr
    batch.write_bytes(pickle.dumps(print))
    assert "builtins.print" in run("cifar10.py", data, *QUICK, expect=2).stderr
    assert "no results" in run("cifar10_plots.py", tmp_path, expect=2).stderr


@pytest.mark.parametrize("data", ["binary"], indirect=True)
def test_a_study_trains_its_rows_and_compares_them(data: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "runs"
    study.write_text(
        "[all]\nwidth = 0.5\nbatch = 16\nthreads = 1\ndevice = 'cpu'\nepochs = 1\nrate = 0.02\n"
        "[rows.dense]\nsparsity = 0\nseed = [0, 1]\n"
        "[rows.'90 %']\nsparsity = 0.9\nblock = 16\nshare_pool = true\n"
    )
    run("cifar10_study.py", data, study, "--out", out)
    header, _, dense, sparse = (out / "study.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (header, dense, sparse)]
    found = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [row["row"] for row in found] == ["dense", "90 %"]
    assert [row["runs"] for row in found] == ["2", "1"]
    assert found[0]["against the first row"] == "+0.00"
    shares = [float(row["multiply-adds, of the first row's"].rstrip("%")) for row in found]
    assert shares[0] == 100
    assert 0 < shares[1] < 100
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
        "90", "dense-seed0", "dense-seed1"
    ]  # fmt: skip
    again = run("cifar10_study.py", data, study, "--out", out)
    assert "epoch 1:" not in again.stderr
    study.write_text("[rows]\n")
    assert "no rows" in run("cifar10_study.py", data, study, expect=2).stderr
    study.write_text("[rows.x]\nsparsity = 2\n")
    assert "x failed" in run("cifar10_study.py", data, study, "--out", out, expect=1).stderr


def test_the_study_of_the_documents_is_one(tmp_path: Path) -> None:
    study = EXAMPLES.parent / "benchmarks" / "accuracy.toml"
    made = run("cifar10_study.py", tmp_path, study, "--out", tmp_path, "--table-only")
    assert "published" in made.stdout
    rows = tomllib.loads(study.read_text())["rows"]
    for row in rows:
        assert f"| {row} | 0 |" in (tmp_path / "study.md").read_text()
    sys.path.insert(0, str(EXAMPLES))
    try:
        from cifar10 import _parser
        from cifar10_study import arguments, read_study
    finally:
        sys.path.remove(str(EXAMPLES))
    for options in itertools.chain(*read_study(study).values()):
        given = vars(_parser().parse_args(["data", *arguments(options)]))
        assert {name: given[name] for name in options} == options
