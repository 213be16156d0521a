"""Fuzzes everything that is checked before an artifact's code is loaded, guided by coverage.

    pip install atheris
    python -m tests.fuzz.fuzz_loader --seconds 600 --findings /tmp/findings

A finding is a file for which opening raises anything but an `ArtifactError`, or which takes too
long or too much memory. It is written to the folder of findings; docs/export.md says what to do
with it then. Inputs that reach new code are kept in the folder as well, and used again.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dsgc_runtime"]):
    import dsgc_runtime.archive
    import dsgc_runtime.session  # noqa: F401

from tests.fuzz.artifacts import outcome, smallest, zipped
from tests.fuzz.mutate import mutated

CORPUS = Path(__file__).with_name("corpus")
_MOST_BYTES = 1 << 16


def main() -> None:
    """Run until the time is over, or something is found."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=600, help="how long to run")
    parser.add_argument("--findings", type=Path, required=True, help="where to write what is found")
    options = parser.parse_args()
    inputs = options.findings / "inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    (inputs / "smallest").write_bytes(zipped(*smallest()))
    scratch = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="dsgc-fuzz-", dir=scratch if scratch.is_dir() else None)
    tempfile.tempdir = folder  # weights pass through a file: one in memory, where there is such
    place = Path(folder) / "input.dsgc"

    def one(data: bytes) -> None:
        place.write_bytes(data)
        outcome(place)
        if "tvm_ffi" in sys.modules:
            raise AssertionError("what loads native code was imported")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        made = mutated(data, seed, lambda part: bytes(atheris.Mutate(part, most)))
        return made if len(made) <= most else bytes(atheris.Mutate(data, most))

    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-artifact_prefix={options.findings}{os.sep}",
        *(f"-max_len={_MOST_BYTES}", "-timeout=10", "-rss_limit_mb=2048"),
        *(str(inputs), str(CORPUS)),
    ]
    atheris.Setup(arguments, one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
