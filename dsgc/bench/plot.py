"""The picture of a bench: how many times faster dsgc is, over sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from dsgc.bench.report import format_threads
from dsgc.bench.results import Row
from dsgc.errors import ConfigError, MissingPackageError
from dsgc.files import check_place, write_whole

__all__ = ["check_plot", "draw_ratios"]

_KINDS = (".png", ".svg")


def check_plot(path: Path) -> None:
    """See before measuring whether the picture can be drawn.

    Raises:
        ConfigError: the name does not end in .png or .svg, or cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    if path.suffix.lower() not in _KINDS:
        raise ConfigError(f"{path} must end in .png or .svg", "plot")
    check_place(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "plots are drawn with matplotlib, which is not installed: pip install 'dsgc[bench]'"
        ) from error


def draw_ratios(rows: Sequence[Row], path: Path) -> None:
    """Draw ratio (solid) and bound (dashed) over sparsity, a line for each workload and threads.

    Args:
        rows: what was measured; those without a time of dsgc are left out.
        path: a .png or .svg file; written whole or not at all.

    Raises:
        ConfigError, MissingPackageError: as `check_plot`.
        OSError: it cannot be written.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(1.0, color="grey", linewidth=1)
    drawn = sorted((row for row in rows if row.ratio is not None), key=_line_and_place)
    for name, group in groupby(drawn, key=_line):
        line = list(group)
        sparsities = [100 * row.workload.sparsity for row in line]
        ratios = [row.ratio or 0.0 for row in line]
        (solid,) = axes.plot(sparsities, ratios, marker="o", label=name)
        bounds = [(100 * row.workload.sparsity, row.bound) for row in line if row.bound]
        axes.plot(
            [place for place, _ in bounds],
            [bound for _, bound in bounds],
            linestyle="--",
            marker="_",
            color=solid.get_color(),
            label=f"{name}: bound by multiply-adds",
        )
    axes.set_xlabel("sparsity (%)")
    axes.set_ylabel("speed against the best dense side")
    # Speed and bound are often far apart, and a ratio of 1/2 is as much as one of 2.
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.grid(alpha=0.3)
    if drawn:
        axes.legend(fontsize="small")
    kind = path.suffix.lower()[1:]
    write_whole(path, lambda scratch: figure.savefig(scratch, format=kind, dpi=150))


def _line(row: Row) -> str:
    """What one line of the picture has in common."""
    block = "" if row.workload.block is None else f", block {row.workload.block}"
    return f"{row.workload.label}, {row.workload.mode}, {format_threads(row.threads)}{block}"


def _line_and_place(row: Row) -> tuple[str, float]:
    return _line(row), row.workload.sparsity
