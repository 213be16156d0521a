"""Where something was measured."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["describe_machine"]

_FEATURES = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("amx_tile", "asimd", "asimddp", "sve"),
)
_PACKAGES = {
    "torch": "torch",
    "tvm": "apache-tvm",
    "dsgc": "dsgc",
    "onnxruntime": "onnxruntime",
}


def describe_machine() -> dict[str, Any]:
    """CPU, system, versions and the date (UTC), for JSON."""
    facts = _cpu_facts()
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    features = [name for name in _FEATURES if name in flags]
    # NEON is called asimd on aarch64.
    features += ["neon"] if "asimd" in flags else []
    return {
        "cpu": facts.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "features": features,
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(package) for name, package in _PACKAGES.items()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _cpu_facts() -> dict[str, str]:
    """What Linux says about the last core; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
