"""Tables of what was measured, and what they come to in words."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from dsgc.bench.results import Cell, Row
from dsgc.bench.sides import COMPILED, DSGC, EAGER, ONNXRUNTIME, TITLES
from dsgc.measure import format_bytes, format_count, format_ratio

__all__ = ["format_threads", "tables", "verdicts"]

_TITLE_OF = dict(TITLES)


def tables(rows: Sequence[Row], *, rounds: int, memory: bool) -> list[Table]:
    """Times, work, and memory if that was measured, a line a row each.

    Args:
        rows: what was measured.
        rounds: how many steps of each side were counted, for the caption.
        memory: whether there is memory to show.
    """
    made = [_times(rows, rounds), _work(rows)]
    return [*made, _memory(rows)] if memory else made


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence for every row that is not simply faster, and one for all."""
    lines = []
    for row in rows:
        where = f"{row.workload.label}, {row.workload.mode}, {format_threads(row.threads)}"
        where += f", sparsity {_percent(row.workload.sparsity)}"
        if row.ratio is None:
            lines.append(f"{where}: dsgc gave no time; {row.cells[DSGC].note}")
            continue
        best, own = row.seconds(row.best_dense), row.seconds(DSGC)
        ratio = format_ratio(best or 0.0, own or 0.0, better="faster", worse="slower")
        reasons = []
        if row.backend == "reference":
            reasons.append("the reference backend computes every neuron, and is never faster")
        elif row.achieved_sparsity is None:
            reasons.append("no layer was made sparse")
        if row.ratio < 1 or reasons:
            text = f"{where}: dsgc is {ratio} than {_TITLE_OF[row.best_dense]}"
            lines.append("; ".join([text, *reasons]))
    slower = sum(1 for row in rows if row.ratio is not None and row.ratio < 1)
    if slower:
        lines.append(f"dsgc is slower than the best dense side in {slower} of {len(rows)} rows.")
    return lines


def _times(rows: Sequence[Row], rounds: int) -> Table:
    caption = (
        f"Medians (quartiles) over {rounds} rounds, measured in turn in one process; dsgc includes "
        "its search. Dense eager: PyTorch, channels-last. Bound: dense multiply-adds over those "
        "that dsgc does without its search."
    )
    table = _table("Time of a step", caption)
    names = [name for name, _ in TITLES if any(_shown(row.cells[name]) for row in rows)]
    for name in names:
        table.add_column(_TITLE_OF[name], justify="right")
    table.add_column("dsgc against best dense", justify="right")
    table.add_column("bound", justify="right")
    for row in rows:
        times = [_time(row.cells[name]) for name in names]
        bound = "-" if row.bound is None else f"{row.bound:.2f}x"
        table.add_row(*_what(row), *times, _comparison(row), bound)
    return table


def _work(rows: Sequence[Row]) -> Table:
    peaks = {row.threads: row.peak for row in rows}
    known = "; ".join(
        f"{format_threads(threads)} {format_count(peak.multiply_adds)}/s ({peak.method})"
        for threads, peak in peaks.items()
    )
    caption = (
        f"Peak, in float32 multiply-adds: {known}. Products of the search have 8 bits and count "
        "like float32."
    )
    table = _table("Work of a step", caption)
    for name in (
        "search,\nof dense step",
        "search,\nof dsgc step",
        "multiply-adds,\ndense",
        "multiply-adds,\ndsgc",
        "of these\nsearch",
        "neurons\nleft out",
        "of peak,\ndense eager",
        "of peak,\ndsgc",
        "of peak,\nwith search",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        dense, own = row.cells[EAGER].multiply_adds, row.cells[DSGC].multiply_adds
        counts = [
            "-" if dense is None else format_count(dense.done),
            "-" if own is None else format_count(own.done + own.search),
            "-" if own is None else format_count(own.search),
        ]
        table.add_row(
            *_what(row),
            *(_percent(row.search_share(side)) for side in (EAGER, DSGC)),
            *counts,
            _percent(row.achieved_sparsity),
            _percent(row.peak_fraction(EAGER)),
            _percent(row.peak_fraction(DSGC)),
            _percent(row.peak_fraction(DSGC, search=True)),
        )
    return table


def _memory(rows: Sequence[Row]) -> Table:
    caption = (
        "Kept for backward: what autograd holds between forward and backward. Process: resident "
        "memory of a fresh process that does a few steps, above its start: model and code that is "
        "loaded on the way included."
    )
    table = _table("Memory", caption)
    for kind, verb in (("kept for backward", "keeps"), ("process", "takes")):
        for name in (f"{kind},\ndense eager", f"{kind},\ndsgc", f"dsgc\n{verb}"):
            table.add_column(name, justify="right")
    for row in rows:
        dense, own = row.cells[EAGER], row.cells[DSGC]
        kept = _bytes(dense.kept_bytes, own.kept_bytes)
        process = _bytes(dense.process_bytes, own.process_bytes)
        notes = [cell.process_note for cell in (dense, own)]
        process[:2] = [note or text for note, text in zip(notes, process[:2], strict=True)]
        table.add_row(*_what(row), *kept, *(Text(text) for text in process))
    return table


def _table(title: str, caption: str) -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("workload", no_wrap=True)
    table.add_column("mode")
    table.add_column("threads", justify="right")
    table.add_column("sparsity", justify="right")
    return table


def _what(row: Row) -> tuple[Text, str, str, str]:
    """The columns that name a row."""
    workload = row.workload
    return Text(workload.label), workload.mode, str(row.threads), _percent(workload.sparsity)


def _shown(cell: Cell) -> bool:
    return bool(cell.seconds) or cell.note != ""


def _time(cell: Cell) -> Text:
    timing = cell.timing
    if timing is None:
        return Text(cell.note or "-")
    digits = 1 if timing.median >= 0.01 else 3
    median, low, high = (
        f"{1000 * seconds:.{digits}f}" for seconds in (timing.median, *timing.quartiles)
    )
    return Text(f"{median} ms ({low} to {high})")


def _comparison(row: Row) -> Text:
    best, own = row.seconds(row.best_dense), row.seconds(DSGC)
    if best is None or own is None:
        return Text("-")
    text = format_ratio(best, own, better="faster", worse="slower")
    dense = {EAGER: "eager", COMPILED: "torch.compile", ONNXRUNTIME: "onnxruntime"}
    style = "" if own <= best else "red"
    return Text(f"{text} than {dense[row.best_dense]}", style=style)


def _bytes(dense: int | None, own: int | None) -> list[str]:
    """Both and how they compare."""
    texts = ["-" if value is None else format_bytes(value) for value in (dense, own)]
    return [*texts, format_ratio(dense or 0, own or 0)]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.3g} %"


def format_threads(count: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{count} thread{'s' if count != 1 else ''}"
