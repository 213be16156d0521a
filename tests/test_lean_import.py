"""`import dsgc` loads torch and nothing heavy, and touches no accelerator."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import dsgc
import torch
heavy = [m for m in sys.modules if m.split(".")[0] in
         {"tvm", "tvm_ffi", "networkx", "onnx", "sklearn", "matplotlib"}]
before = set(sys.modules)
print("heavy:", [m for m in heavy if m.split(".")[0] not in IGNORED])
print("cuda:", torch.cuda.is_initialized())
"""


@pytest.mark.timeout(60)
def test_import_is_lean() -> None:
    # torch itself may load networkx or such: what it brings is not ours.
    code = "import sys, torch\nIGNORED = {m.split('.')[0] for m in sys.modules}\n" + SCRIPT
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "heavy: []\ncuda: False\n", done.stderr
