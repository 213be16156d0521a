"""`dsgc export`, `run`, `inspect`, `bench` of an artifact, and `doctor`."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from dsgc import SparseModule, zoo
from dsgc.cli import app
from tests.exporter.networks import IMAGE, exported

WIDE = {"COLUMNS": "200"}  # so that messages are not broken into lines
SIZES = ["--width", "0.25", "--image-size", "16", "--batch", "3"]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[SparseModule, Path]:
    return exported(tmp_path_factory.mktemp("artifact"))


def test_a_checkpoint_is_exported_and_run(tmp_path: Path) -> None:
    torch.manual_seed(3)
    dense = zoo.build("vgg8", width=0.25, image_size=16).eval()
    torch.save({"model": dense.state_dict()}, tmp_path / "checkpoint.pt")
    out, x, y = (tmp_path / name for name in ("model.dsgc", "x.npy", "y.npy"))
    options = ["--checkpoint", str(tmp_path / "checkpoint.pt"), *SIZES]
    made = CliRunner().invoke(app, ["export", "vgg8", str(out), *options])
    assert made.exit_code == 0, made.output
    images = torch.randn(5, 3, 16, 16)
    np.save(x, images.numpy())
    done = CliRunner().invoke(app, ["run", str(out), str(x), "--out", str(y), "--threads", "1"])
    assert done.exit_code == 0, done.output
    assert "output0: float32 [5, 10]" in done.stdout
    with torch.no_grad():
        wanted = dense(images).numpy()
    # So small a network stays dense, and then the artifact is the network.
    np.testing.assert_allclose(np.load(y), wanted, rtol=1e-4, atol=1e-4)


def test_a_name_that_ends_in_onnx_makes_an_onnx_file(tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    made = CliRunner().invoke(app, ["export", "lenet5", str(out), "--batch", "2"])
    assert made.exit_code == 0, made.output
    assert onnx.load(out).opset_import[0].version == 18


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    torch.save(zoo.build("lenet5").state_dict(), tmp_path / "checkpoint.pt")
    (tmp_path / "empty.pt").touch()
    for name in ("checkpoint.pt", "empty.pt"):
        options = ["--checkpoint", str(tmp_path / name), *SIZES]
        made = CliRunner().invoke(app, ["export", "vgg8", str(tmp_path / "m.dsgc"), *options])
        assert made.exit_code == 2
        assert "does not fit the model" in made.stderr
        assert not (tmp_path / "m.dsgc").exists()


def test_results_are_printed_without_a_file(
    artifact: tuple[SparseModule, Path], tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, *IMAGE), np.float32))
    done = CliRunner().invoke(app, ["run", str(artifact[1]), str(tmp_path / "x.npy")])
    assert done.exit_code == 0, done.output
    assert "[2, 7]" in done.stdout
    assert done.stdout.count("[[") == 1


def test_wrong_arrays_are_named(artifact: tuple[SparseModule, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 3), np.float32))
    np.save(tmp_path / "big.npy", np.zeros((2, *IMAGE), ">f4"))
    (tmp_path / "no.npy").write_text("hello")
    (tmp_path / "empty.npy").touch()
    for name, said in (
        ("x.npy", "must be float32"),
        ("big.npy", "not >f4"),
        ("no.npy", "not an .npy file"),
        ("empty.npy", "not an .npy file"),
    ):
        done = CliRunner().invoke(app, ["run", str(artifact[1]), str(tmp_path / name)], env=WIDE)
        assert done.exit_code == 1
        assert said in done.stderr


def test_inspect_shows_every_layer(artifact: tuple[SparseModule, Path]) -> None:
    done = CliRunner().invoke(app, ["inspect", str(artifact[1])])
    assert done.exit_code == 0, done.output
    for text in ("input: float32 [batch, 3, 12, 12]", "0.3", "75%"):
        assert text in done.stdout
    graph = CliRunner().invoke(app, ["inspect", str(artifact[1]), "--graph", "lowered"])
    assert "conv2d" in graph.stdout
    plain = CliRunner().invoke(app, ["inspect", str(artifact[1]), "--json"])
    about = json.loads(plain.stdout)
    assert [layer["name"] for layer in about["layers"]] == ["0.0", "0.3", "0.7", "1.2"]
    assert about["dynamic_batch"]


def test_inspect_says_what_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "text.dsgc").write_text("hello")
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "text.dsgc")])
    assert done.exit_code == 1
    assert "is not an artifact" in done.stderr


def test_bench_measures_an_artifact(artifact: tuple[SparseModule, Path], tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    options = ["--batch", "2", "--threads", "1", "--threads", "2", "--rounds", "1"]
    done = CliRunner().invoke(app, ["bench", str(artifact[1]), *options, "--json", str(file)])
    assert done.exit_code == 0, done.output
    assert "batch 2, threads 2" in done.stdout
    rows = json.loads(file.read_text())
    assert [row["threads"] for row in rows] == [1, 2]
    assert all(row["seconds"] > 0 and row["layers"] for row in rows)


def test_doctor_finds_nothing_missing_here() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 0, done.output
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert {"torch", "C compiler", "OpenMP", "kernel cache", "threads"} <= set(found)
    assert found["torch"]["said"] == torch.__version__


def test_doctor_says_how_to_mend_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def no_library(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("DSGC_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    done = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
    assert done.exit_code == 1
    for text in ("apt-get install libgomp1", "apt-get install gcc g++", "export DSGC_CACHE="):
        assert text in done.stdout
    assert "export OMP_NUM_THREADS=" in done.stdout


def test_files_that_are_no_arrays_are_named(
    artifact: tuple[SparseModule, Path], tmp_path: Path
) -> None:
    places = [tmp_path / name for name in ("zip.npy", "header.npy", "several.npz")]
    places[0].write_bytes(b"PK\x03\x04 and nothing like it")
    places[1].write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': ((((\n    ")
    np.savez(places[2], np.zeros(3), np.ones(3))
    for place in places:
        done = CliRunner().invoke(app, ["run", str(artifact[1]), str(place)], env=WIDE)
        assert done.exit_code == 1
        assert place.name in done.stderr
        assert "an .npy file" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "lenet5", "m.onnx", "--target", "avx2"], "leave --target out"),
        (["export", "lenet5", "m.dsgc", "--batch", "100000000000"], "cannot be made"),
        (["explain", "lenet5", "--batch", "100000000000"], "cannot be made"),
        (["run", "m.dsgc", "x.npy", "--threads", "50000"], "1024"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments, env=WIDE)
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_page_goes_where_a_link_points(
    artifact: tuple[SparseModule, Path], tmp_path: Path
) -> None:
    link, page = tmp_path / "link.html", tmp_path / "page.html"
    link.symlink_to(page)
    done = CliRunner().invoke(app, ["inspect", str(artifact[1]), "--html", str(link)], env=WIDE)
    assert done.exit_code == 0, done.output
    assert link.is_symlink()
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    for wrong in (tmp_path, tmp_path / "none" / "page.html"):
        command = ["inspect", str(artifact[1]), "--html", str(wrong)]
        done = CliRunner().invoke(app, command, env=WIDE)
        assert done.exit_code == 2
        assert "cannot be written" in done.stderr


def test_a_reader_that_leaves_is_no_error(artifact: tuple[SparseModule, Path]) -> None:
    script = f"dsgc inspect {shlex.quote(str(artifact[1]))} --json | true"
    bin_folder = str(Path(sys.executable).parent)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": path},
        timeout=120,
    )
    assert done.stderr == ""
