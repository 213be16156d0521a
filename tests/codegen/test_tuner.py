"""The tuner: what it tries, keeps, and leaves alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dsgc.codegen import cpu_kernels
from dsgc.codegen import tuner as tuner_module
from dsgc.codegen.cache import KernelCache
from dsgc.codegen.cpu import Libraries
from dsgc.codegen.cpu.schedules import SCHEDULES
from dsgc.codegen.tuner import Tuner
from dsgc.ops import mask_to_selection

SLOW, FAST = 0.01, 0.001


class Clock:
    """In the place of the time module: what a busy machine does with a process changes nothing."""

    seconds = 0.0

    def perf_counter(self) -> float:
        return self.seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuner_module, "time", CLOCK)


class Ways:
    """Candidates that take a given time by the clock and count their runs."""

    def __init__(self, **seconds: float) -> None:
        self.runs = dict.fromkeys(seconds, 0)
        self.candidates: dict[str, Callable[[], str]] = {
            name: self._way(name, wait) for name, wait in seconds.items()
        }

    def _way(self, name: str, wait: float) -> Callable[[], str]:
        def run() -> str:
            self.runs[name] += 1
            CLOCK.seconds += wait
            return name

        return run


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DSGC_TUNE", raising=False)
    return tmp_path / "new" / "schedules.json"


def test_the_fastest_is_taken_and_tried_once(place: Path) -> None:
    ways, tuner = Ways(default=SLOW, other=FAST), Tuner(lambda: place)
    assert tuner.run("layer", ways.candidates) == "other"
    runs = dict(ways.runs)
    assert tuner.run("layer", ways.candidates) == "other"
    assert ways.runs == {"default": runs["default"], "other": runs["other"] + 1}
    assert list(tuner.choices().values()) == ["other"]


def test_the_default_stays_unless_clearly_beaten(place: Path) -> None:
    ways = Ways(default=FAST, other=SLOW)
    assert Tuner(lambda: place).run("layer", ways.candidates) == "default"


def test_choices_outlive_the_process(place: Path) -> None:
    Tuner(lambda: place).run("layer", Ways(default=SLOW, other=FAST).candidates)
    again = Ways(default=FAST, other=SLOW)
    assert Tuner(lambda: place).run("layer", again.candidates) == "other"
    assert again.runs == {"default": 0, "other": 1}


def test_choices_belong_to_a_number_of_threads(place: Path) -> None:
    tuner, ways = Tuner(lambda: place), Ways(default=SLOW, other=FAST)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            tuner.run("layer", ways.candidates)
    finally:
        torch.set_num_threads(before)
    assert len(tuner.choices()) == 2


def test_nothing_is_tried_when_turned_off(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSGC_TUNE", "0")
    ways = Ways(default=SLOW, other=FAST)
    assert Tuner(lambda: place).run("layer", ways.candidates) == "default"
    assert ways.runs == {"default": 1, "other": 0}
    assert not place.exists()


def test_a_spent_budget_ends_trying_but_not_choices(place: Path) -> None:
    tuner, ways = Tuner(lambda: place, budget=SLOW), Ways(default=SLOW, other=FAST)
    assert tuner.run("first", ways.candidates) == "other"
    assert tuner.run("second", ways.candidates) == "default"
    assert tuner.run("first", ways.candidates) == "other"


def test_short_work_is_not_worth_it(place: Path) -> None:
    ways = Ways(default=0.0, other=0.0)
    assert Tuner(lambda: place).run("layer", ways.candidates) == "default"
    assert ways.runs["other"] == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"layer threads=1": "gone"}'])
def test_a_damaged_file_is_no_obstacle(place: Path, content: str) -> None:
    place.parent.mkdir()
    place.write_text(content, encoding="utf-8")
    ways = Ways(default=SLOW, other=FAST)
    assert Tuner(lambda: place).run("layer", ways.candidates) == "other"
    assert "other" in json.loads(place.read_text(encoding="utf-8")).values()


def test_processes_add_to_each_others_choices(place: Path) -> None:
    one, two = Tuner(lambda: place), Tuner(lambda: place)
    for tuner, key in ((one, "a"), (two, "b"), (one, "c")):
        tuner.run(key, Ways(default=SLOW, other=FAST).candidates)
    assert len(json.loads(place.read_text(encoding="utf-8"))) == 3


def test_a_place_that_cannot_be_written_costs_nothing_but_the_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    ways, tuner = Ways(default=SLOW, other=FAST), Tuner(lambda: tmp_path / "file" / "below.json")
    assert tuner.run("layer", ways.candidates) == "other"
    assert tuner.run("layer", ways.candidates) == "other"


def test_nothing_is_left_over_when_writing_fails(place: Path) -> None:
    place.mkdir(parents=True)  # a directory is not replaced by a file
    ways = Ways(default=SLOW, other=FAST)
    assert Tuner(lambda: place).run("layer", ways.candidates) == "other"
    assert list(place.parent.iterdir()) == [place]
    assert list(place.iterdir()) == []


def test_threads_that_meet_a_layer_together_try_it_once(place: Path) -> None:
    tuner, ways = Tuner(lambda: place), Ways(default=SLOW, other=FAST)
    start, found = threading.Barrier(2), []

    def work() -> None:
        start.wait()
        found.append(tuner.run("layer", ways.candidates))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["other"] * 2
    alone = Ways(default=SLOW, other=FAST)
    Tuner(lambda: place.with_name("alone.json")).run("layer", alone.candidates)
    assert ways.runs == {"default": alone.runs["default"], "other": alone.runs["other"] + 1}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_do_not_change_a_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_kernels()
    libraries, ops = Libraries(KernelCache()), torch.ops.dsgc
    from dsgc.codegen.cpu import kernels

    own = kernels(libraries)
    torch.manual_seed(0)
    size = [64, 24, 24]
    packed = mask_to_selection(torch.rand(3, 4, 24, 24) < 0.4, bits=False)
    target = mask_to_selection(torch.rand(3, 3, 24, 24) < 0.3, bits=False)
    source = (ops.pack(torch.randn(3, *size), *packed, 16), *packed, None, None, "relu", size)
    weight, window = torch.randn(48, 64, 3, 3), (16, [1, 1], [1, 1], [1, 1])
    results = []
    for chosen in (next(iter(SCHEDULES)), name):

        def run(
            key: str, candidates: dict[str, Callable[[], object]], chosen: str = chosen
        ) -> object:
            return candidates[chosen]()

        monkeypatch.setattr(libraries.tuner, "run", run)
        y = own["conv2d"](*source, weight, None, *target, *window)
        torch.manual_seed(1)
        grad = torch.randn_like(y)
        backward = (grad, *source, weight, *target, *window, True, True, False)
        results.append([y, *own["conv2d_backward"](*backward)[:4:3]])
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
