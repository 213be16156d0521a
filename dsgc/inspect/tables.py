"""Tables of layers: the same rows as rich text, Markdown, dicts or a pandas frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

__all__ = ["Column", "LayerTable", "Tabular"]


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        name: its heading.
        number: whether it holds numbers.
        minor: 0, or how early it goes where there is no room for all.
    """

    name: str
    number: bool = False
    minor: int = 0


@dataclass(frozen=True)
class LayerTable:
    """Rows of text, a layer each.

    Attributes:
        title: what the table is of.
        columns: their headings.
        rows: as many texts as columns.
        totals: the last row; empty for none.
        notes: sentences below the table.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    totals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def named_rows(self) -> list[dict[str, str]]:
        """Every row by the headings."""
        names = [column.name for column in self.columns]
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For `rich.print`: where columns do not fit, minor ones are left out, and it says so."""
        from rich.box import SIMPLE_HEAD
        from rich.markup import escape
        from rich.table import Table

        shown, hidden = self._fitting(options.max_width)
        table = Table(
            title=escape(self.title),
            title_justify="left",
            show_footer=bool(self.totals),
            box=SIMPLE_HEAD,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for i in shown:
            column = self.columns[i]
            footer = escape(self.totals[i]) if self.totals else ""
            side: Literal["left", "right"] = "right" if column.number else "left"
            table.add_column(column.name, footer, justify=side, overflow="fold")
        for row in self.rows:
            table.add_row(*(escape(row[i]) for i in shown))
        yield table
        if hidden:
            names = ", ".join(self.columns[i].name for i in hidden)
            yield f"[dim]left out for want of {options.max_width}+ columns: {names}[/]"
        for note in self.notes:
            yield escape(f"- {note}")

    def _fitting(self, width: int) -> tuple[list[int], list[int]]:
        """Columns that fit side by side, and those left out, minor ones from the right first."""
        every = [tuple(column.name for column in self.columns), *self.rows]
        if self.totals:
            every.append(self.totals)
        widths = [max(len(row[i]) for row in every) + 2 for i in range(len(self.columns))]
        shown = list(range(len(self.columns)))
        hidden: list[int] = []
        for i in sorted(shown, key=lambda i: (self.columns[i].minor, i), reverse=True):
            if sum(widths[j] for j in shown) <= width or not self.columns[i].minor:
                break
            shown.remove(i)
            hidden.append(i)
        return shown, sorted(hidden)

    def markdown(self) -> str:
        """As a table of GitHub's Markdown, with the notes as a list below."""
        rows = [*self.rows, *([self.totals] if self.totals else [])]
        lines = [
            _markdown_row([column.name for column in self.columns]),
            _markdown_row(["---:" if column.number else "---" for column in self.columns]),
            *(_markdown_row(row) for row in rows),
        ]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([f"### {self.title}", "", *lines, *notes]) + "\n"

    def text(self, width: int = 160) -> str:
        """As plain text of at most `width` columns."""
        from io import StringIO

        from rich.console import Console

        file = StringIO()
        Console(file=file, width=width, color_system=None).print(self)
        return file.getvalue()


@dataclass(frozen=True)
class Tabular:
    """A finding that is a table of layers; print it, or take it apart."""

    def table(self) -> LayerTable:
        """A row a layer."""
        raise NotImplementedError

    def records(self) -> list[dict[str, Any]]:
        """A flat record a layer."""
        raise NotImplementedError

    def __str__(self) -> str:
        return self.table().text()

    def __rich__(self) -> LayerTable:
        return self.table()

    def markdown(self) -> str:
        """The table as Markdown."""
        return self.table().markdown()

    _repr_markdown_ = markdown

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, ready for JSON."""
        return asdict(self)

    def to_pandas(self) -> Any:
        """A DataFrame with a row a layer.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return _frame(self.records())


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = (cell.replace("|", r"\|").replace("\n", " ") for cell in cells)
    return f"| {' | '.join(escaped)} |"


def _frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A pandas DataFrame with a row a layer.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        from dsgc.errors import MissingPackageError

        raise MissingPackageError(
            "to_pandas() needs pandas: pip install pandas; to_dict() gives the same without it"
        ) from error
    return pandas.DataFrame.from_records(list(rows))
