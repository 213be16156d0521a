"""The runtime: inputs, threads, profiles, and life without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dsgc_runtime
from dsgc import SparseModule
from tests.exporter.networks import IMAGE, exported

RUNTIME = Path(dsgc_runtime.__file__).parent.parent


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[SparseModule, Path]:
    return exported(tmp_path_factory.mktemp("artifact"))


@pytest.fixture
def model(artifact: tuple[SparseModule, Path]) -> dsgc_runtime.Model:
    return dsgc_runtime.load(artifact[1], threads=1)


def images(batch: int) -> NDArray[np.float32]:
    return np.random.default_rng(batch).standard_normal((batch, *IMAGE), np.float32)


def run(model: dsgc_runtime.Model, x: object) -> NDArray[np.float32]:
    found = model(x)
    assert isinstance(found, np.ndarray)
    return found


def test_it_says_what_it_takes_and_gives(model: dsgc_runtime.Model) -> None:
    (given,), (made,) = model.inputs, model.outputs
    assert (given.name, given.dtype, given.shape) == ("input", "float32", (None, 3, 12, 12))
    assert (made.dtype, made.shape) == ("float32", (None, 7))


def test_arrays_of_any_kind_are_taken(model: dsgc_runtime.Model) -> None:
    x = images(3)
    wanted = run(model, x)
    assert np.array_equal(run(model, torch.from_numpy(x)), wanted)
    assert np.array_equal(run(model, np.asfortranarray(x)), wanted)
    frozen = x.copy()
    frozen.setflags(write=False)
    assert np.array_equal(run(model, frozen), wanted)
    odd = np.empty(x.size * 4 + 1, np.uint8)[1:].view(np.float32).reshape(x.shape)
    odd[...] = x
    assert np.array_equal(run(model, odd), wanted)


def test_what_torch_has_still_to_negate_is_negated(model: dsgc_runtime.Model) -> None:
    x = torch.from_numpy(images(2))
    negative = torch.complex(x, -x).conj().imag
    assert negative.is_neg()
    assert np.array_equal(model(negative), model(x))


def test_an_empty_batch_gives_an_empty_result(model: dsgc_runtime.Model) -> None:
    assert run(model, images(0)).shape == (0, 7)


def test_results_belong_to_the_caller(model: dsgc_runtime.Model) -> None:
    first = run(model, images(2))
    kept = first.copy()
    run(model, images(2) + 1)
    assert np.array_equal(first, kept)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), "takes 1 inputs"),
        ((np.zeros((2, 3, 12, 11), np.float32),), r"must be float32 \[batch, 3, 12, 12\]"),
        ((np.zeros((3, 12, 12), np.float32),), r"not float32 \[3, 12, 12\]"),
        ((np.zeros((2, *IMAGE)),), "not float64"),
        ((np.zeros((2, *IMAGE), ">f4"),), "not >f4"),
        (([1.0],), "is a list that numpy cannot read"),
        ((torch.zeros(2, *IMAGE, requires_grad=True),), "needs no gradient"),
        ((torch.zeros(2, *IMAGE, device="meta"),), "on the CPU"),
    ],
)
def test_wrong_inputs_are_named(
    model: dsgc_runtime.Model, given: tuple[object, ...], said: str
) -> None:
    with pytest.raises(dsgc_runtime.InputError, match=said):
        model(*given)


def test_threads_change_nothing(artifact: tuple[SparseModule, Path]) -> None:
    x = images(6)
    one, two = (run(dsgc_runtime.load(artifact[1], threads=n), x) for n in (1, 2))
    assert np.array_equal(one, two)
    model = dsgc_runtime.load(artifact[1])
    model.threads = 2
    run(model, x)
    assert torch.get_num_threads() == 1
    with pytest.raises(ValueError, match="number from 1 to 1024"):
        model.threads = 0


def test_many_threads_may_call_at_once(model: dsgc_runtime.Model) -> None:
    batches = [images(1 + i % 5) for i in range(40)]
    wanted = [run(model, x) for x in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda x: run(model, x), batches))
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


_ENDING_THREADS = """
import sys, threading
from pathlib import Path

import dsgc_runtime
import numpy as np


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


model = dsgc_runtime.load(sys.argv[1], threads=1)
images = np.ones((16, *map(int, sys.argv[2:])), np.float32)


def call_in_threads(count):
    for _ in range(count):
        thread = threading.Thread(target=model, args=(images,))
        thread.start()
        thread.join()


call_in_threads(100)
before = resident()
call_in_threads(900)
print(resident() - before)
"""


def test_a_thread_that_ends_leaves_nothing_behind(artifact: tuple[SparseModule, Path]) -> None:
    arguments = [str(artifact[1]), *map(str, IMAGE)]
    done = subprocess.run(
        [sys.executable, "-c", _ENDING_THREADS, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(dsgc_runtime.__file__).parents[1])},
    )
    assert int(done.stdout) < 900 * 1000


def test_a_profile_has_every_layer(model: dsgc_runtime.Model) -> None:
    layers = {layer.name: layer for layer in model.profile(images(4))}
    assert {"0.0", "0.3", "0.7", "1.2"} <= set(layers)
    assert layers["0.3"].sparsity == pytest.approx(0.75)
    assert layers["0.0"].sparsity is None
    assert sum(layer.share for layer in layers.values()) <= 1.0
    assert all(layer.seconds >= 0 and layer.bytes > 0 for layer in layers.values())
    with pytest.raises(dsgc_runtime.InputError, match="empty batch"):
        model.profile(images(0))


SCRIPT = """
import sys, time
begun = time.perf_counter()
import dsgc_runtime
seconds = time.perf_counter() - begun
import numpy as np
model = dsgc_runtime.load(sys.argv[1], threads=1)
np.save(sys.argv[3], model(np.load(sys.argv[2])))
for name in ("torch", "tvm", "dsgc"):
    assert name not in sys.modules, name
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} is here")
print(seconds)
"""


def test_it_runs_where_there_is_neither_torch_nor_tvm(
    artifact: tuple[SparseModule, Path], tmp_path: Path, model: dsgc_runtime.Model
) -> None:
    source = tmp_path / "runtime"
    shutil.copytree(RUNTIME, source, ignore=shutil.ignore_patterns("__pycache__", "build"))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "-q", str(source)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    x = images(3)
    np.save(tmp_path / "x.npy", x)
    command = [str(python), "-c", SCRIPT, str(artifact[1]), "x.npy", "y.npy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "y.npy"), run(model, x))
    site = next((tmp_path / "venv" / "lib").glob("python*/site-packages"))
    ours = ("dsgc_runtime", "safetensors", "tvm_ffi")
    size = sum(f.stat().st_size for name in ours for f in (site / name).rglob("*") if f.is_file())
    assert size < 20e6
    assert sys.version_info >= (3, 11)
