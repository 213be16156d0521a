"""Which of a few schedules suits a shape: tried when it is first met, remembered on disk.

Kernels are compiled for every shape at once, so trying a schedule costs a few runs and no
compilation. Only what leaves every bit of a result as it is may be tried: results must not depend
on which was fastest.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

__all__ = ["Tuner"]

Result = TypeVar("Result")

_BUDGET_SECONDS = 5.0
_ROUNDS = 2  # timed runs of every candidate, after one that is not
_SHORT_SECONDS = 3e-4  # work that is not worth trying anything for
_CLEARLY = 0.95  # of the default's time, or the default stays

_log = logging.getLogger(__name__)


class Tuner:
    """Chooses among ways to do the same work by trying them.

    A choice belongs to its key and to the number of threads. Nothing is tried, and the first
    candidate taken, if the environment variable ``DSGC_TUNE`` is ``0`` or once ``budget`` is spent;
    choices made before hold after that.

    Args:
        place: the JSON file that keeps choices between processes, read when first needed.
        budget: seconds that this process may spend on trying, 5 by default.
    """

    def __init__(self, place: Callable[[], Path], budget: float = _BUDGET_SECONDS) -> None:
        self._place = place
        self._left = budget
        self._choices: dict[str, str] | None = None
        self._lock = threading.Lock()

    def run(self, key: str, candidates: Mapping[str, Callable[[], Result]]) -> Result:
        """The result of the candidate that is fastest for ``key``; the first one is the default."""
        default = next(iter(candidates))
        if len(candidates) == 1 or os.environ.get("DSGC_TUNE") == "0":
            return candidates[default]()
        key = f"{key} threads={torch.get_num_threads()}"
        best = self._known().get(key, "")
        if best not in candidates:
            with self._lock:
                # Another thread may have tried it while this one waited.
                best = self._known().get(key, "")
                if best not in candidates:
                    best = self._try(key, default, candidates) if self._left > 0 else default
        return candidates[best]()

    def choices(self) -> Mapping[str, str]:
        """What was chosen, by key: here and in the processes whose choices were read."""
        return dict(self._known())

    def _try(self, key: str, default: str, candidates: Mapping[str, Callable[[], object]]) -> str:
        """The name of the best candidate, which is kept."""
        begun = time.perf_counter()
        for work in candidates.values():
            work()
        times = dict.fromkeys(candidates, float("inf"))
        for _ in range(_ROUNDS):
            for name, work in candidates.items():
                start = time.perf_counter()
                work()
                times[name] = min(times[name], time.perf_counter() - start)
            if times[default] < _SHORT_SECONDS:
                break
        best = min(times, key=lambda name: times[name])
        if times[default] < _SHORT_SECONDS or times[best] > _CLEARLY * times[default]:
            best = default
        self._left -= time.perf_counter() - begun
        _log.info("%s: %s, of %s", key, best, times)
        self._keep(key, best)
        return best

    def _known(self) -> dict[str, str]:
        if self._choices is None:
            self._choices = _read(self._place())
        return self._choices

    def _keep(self, key: str, choice: str) -> None:
        choices = self._known()
        choices[key] = choice
        place = self._place()
        try:
            # Another process may have added its own since; what both tried may be either's.
            together = {**_read(place), **choices}
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent, prefix=place.name) as scratch:
                file = Path(scratch) / place.name
                file.write_text(json.dumps(together, indent=1, sort_keys=True), encoding="utf-8")
                file.replace(place)
        except OSError as error:
            _log.info("choices are not kept on disk: %s", error)


def _read(place: Path) -> dict[str, str]:
    """The choices in a file; none if it is missing or damaged: it is only a cache."""
    try:
        content = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(key): str(choice) for key, choice in content.items()}
