"""Trains every row of a study with cifar10.py and puts the results side by side.

    python examples/cifar10_study.py DATA benchmarks/accuracy.toml --out runs

A study is a TOML file with a table of options for all rows and a table for each row, whose keys are
the options of cifar10.py; a value may be a list, which makes a run of each of its values:

    [all]
    network = "vgg8"
    epochs = 8
    seed = [0, 1]
    [rows.dense]
    sparsity = 0
    [rows."80 %"]
    sparsity = 0.8

Runs that were stopped go on, finished ones are not repeated. The table goes to `study.md`, and what
it is made of to `study.json`, in the folder of the runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar10_plots import draw

from dsgc.files import write_json

__all__ = ["main", "read_study", "table"]

Options = dict[str, Any]


class StudyError(Exception):
    """The file is not a study."""


def read_study(path: Path) -> dict[str, list[Options]]:
    """The options of every run, by row. Raises StudyError."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StudyError(f"{path} cannot be read: {error}") from error
    shared, rows = content.get("all", {}), content.get("rows", {})
    if other := sorted(set(content) - {"all", "rows"}):
        raise StudyError(f"{path}: unknown table {', '.join(other)}; there are [all] and [rows.*]")
    if not rows or not all(isinstance(row, dict) for row in rows.values()):
        raise StudyError(f"{path} has no rows: write a table [rows.NAME] for each")
    return {name: list(_runs(shared | row)) for name, row in rows.items()}


def _runs(options: Options) -> Iterator[Options]:
    choices = [value if isinstance(value, list) else [value] for value in options.values()]
    for values in itertools.product(*choices):
        yield dict(zip(options, values, strict=True))


def folder(row: str, runs: Sequence[Options], options: Options) -> str:
    """A file name for a run: the row, and what tells it from the row's other runs."""
    apart = [key for key in options if any(run[key] != options[key] for run in runs)]
    name = "-".join([row, *(f"{key}{options[key]}" for key in apart)])
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")


def arguments(options: Options) -> list[str]:
    """Options as cifar10.py takes them on the command line."""
    found = []
    for key, value in options.items():
        name = "--" + key.replace("_", "-")
        if value is True:
            found.append(name)
        elif value is not False:
            found += [name, str(value)]
    return found


def table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The results of the runs of every row, as Markdown. The first row is what others are held to.

    A spread is the largest difference from the mean. Time is of training alone; the time to the
    first row's accuracy, less a point, is that of the first epoch that has it.
    """
    lines = [
        "| row | runs | epochs | test accuracy, % | against the first row "
        "| multiply-adds, of the first row's | minutes | minutes to the first row's accuracy - 1 |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    goal: float | None = None
    whole: float | None = None
    for name, runs in rows.items():
        done = [run for run in runs if run["epochs"]]
        if not done:
            lines.append(f"| {name} | 0 | | | | | | |")
            continue
        last = [100 * run["epochs"][-1]["test_accuracy"] for run in done]
        mean = statistics.fmean(last)
        goal = mean if goal is None else goal
        work = _multiply_adds(done)
        whole = work if whole is None else whole
        share = "" if work is None or whole is None else f"{work / whole:.1%}"
        spread = f" ± {max(abs(one - mean) for one in last):.2f}" if len(last) > 1 else ""
        minutes = statistics.fmean(run["epochs"][-1]["seconds"] for run in done) / 60
        fewest = min(len(run["epochs"]) for run in done)
        lines.append(
            f"| {name} | {len(done)} | {fewest} | {mean:.2f}{spread} | {mean - goal:+.2f} "
            f"| {share} | {minutes:.1f} | {_reached(done, goal - 1)} |"
        )
    return "\n".join(lines) + "\n"


def _multiply_adds(runs: Sequence[Mapping[str, Any]]) -> float | None:
    """Of inference, search included."""
    counts = [run["multiply_adds"] for run in runs if run.get("multiply_adds")]
    return statistics.fmean(one["done"] + one["search"] for one in counts) if counts else None


def _reached(runs: Sequence[Mapping[str, Any]], goal: float) -> str:
    """Minutes of training until every run had had `goal` percent, on average; else nothing."""
    times = []
    for run in runs:
        there = [e["seconds"] for e in run["epochs"] if 100 * e["test_accuracy"] >= goal]
        if not there:
            return "-"
        times.append(there[0])
    return f"{statistics.fmean(times) / 60:.1f}"


def main(arguments_given: Sequence[str] | None = None) -> None:
    """Run what is missing; exits with 2 for wrong input, 1 if a run fails."""
    parser = argparse.ArgumentParser(description="Train the rows of a study on CIFAR-10.")
    parser.add_argument("data", help="what cifar10.py reads")
    parser.add_argument("study", help="a .toml file, see the top of this script")
    parser.add_argument("--out", default="runs", help="folder for the runs and the table")
    parser.add_argument("--table-only", action="store_true", help="train nothing")
    given = parser.parse_args(arguments_given)
    try:
        rows = read_study(Path(given.study))
    except StudyError as error:
        parser.error(str(error))
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    for row, runs in rows.items():
        for options in runs if not given.table_only else ():
            _train(given.data, out / folder(row, runs, options), options)
    results = {
        row: [_result(out / folder(row, runs, options)) for options in runs]
        for row, runs in rows.items()
    }
    text = table(results)
    (out / "study.md").write_text(text, encoding="utf-8")
    write_json(out / "study.json", results)
    if first := {row: runs[0] for row, runs in results.items() if runs[0]["epochs"]}:
        draw(first, out / "study.png")
    print(text)


def _train(data: str, place: Path, options: Options) -> None:
    script = Path(__file__).with_name("cifar10.py")
    print(f"{place.name}:", file=sys.stderr, flush=True)
    command = [sys.executable, str(script), data, *arguments(options), "--out", str(place)]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"error: {place.name} failed; finished runs are kept, start again to go on")


def _result(place: Path) -> Any:
    try:
        return json.loads((place / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"epochs": []}


if __name__ == "__main__":
    main()
