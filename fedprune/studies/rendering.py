"""A table as it is shown and kept: for a terminal, Markdown, LaTeX, CSV, and as a data frame of pandas.

What stands in a table is the matter of `fedprune.studies.table`. rich and pandas are imported where they are
needed.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from io import StringIO
from textwrap import fill
from typing import TYPE_CHECKING, Any

from fedprune.results.records import Record

if TYPE_CHECKING:
    from pandas import DataFrame

_LATEX = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "#$%&_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "µ": r"\textmu{}",
    "×": r"$\times$",
}
_GAP = 2
_LONG_HEAD = 9  #: Characters.


@dataclass(frozen=True)
class Part:
    """Columns of a table that are shown together: their title, heads and rows of text.

    The first ``names`` columns hold names and say whose row it is; the others hold numbers.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    names: int = 1

    def __post_init__(self) -> None:
        if any(len(row) != len(self.heads) for row in self.rows):
            raise ValueError(f"{self.title}: a row has another number of cells than there are heads")


@dataclass(frozen=True)
class Table:
    """A table of a study.

    Attributes
    ----------
    title
        What it is about.
    parts
        What is shown, one below the other.
    notes
        Sentences that a reader has to know.
    records
        The numbers behind it in full, a row a group, run or class of device.
    """

    title: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    _records: Callable[[], Sequence[Record]] = field(repr=False, compare=False)

    @cached_property
    def records(self) -> tuple[Record, ...]:
        """The numbers behind the table, in raw units; intervals are computed when they are asked for."""
        return tuple(self._records())

    def text(self, width: int | None = 120) -> str:
        """Return the table for a terminal.

        A part that is wider than ``width`` characters is shown in several pieces, each with the names. None
        keeps every part whole.
        """
        from rich import box
        from rich.console import Console
        from rich.markup import escape as plain
        from rich.table import Table as RichTable

        file = StringIO()
        console = Console(file=file, width=10_000, highlight=False, color_system=None)
        for part in self.parts:
            for number, columns in enumerate(_pieces(part, width)):
                if part.title:
                    console.print(plain(part.title if number == 0 else f"{part.title}, continued"))
                table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
                for column in columns:
                    table.add_column(
                        plain(part.heads[column]),
                        justify="left" if column < part.names else "right",
                        no_wrap=True,
                    )
                for row in part.rows:
                    table.add_row(*(plain(row[column]) for column in columns))
                console.print(table)
        lines = [line.rstrip() for line in file.getvalue().splitlines()]
        notes = (fill(note, width, subsequent_indent="  ") if width else note for note in self.notes)
        return "\n".join([*lines, *notes]) + "\n"

    def markdown(self) -> str:
        """Return the table in Markdown, aligned for readers of the source too; notes are a list below."""
        pieces = []
        for part in self.parts:
            cells = [[_markdown(cell) for cell in row] for row in (part.heads, *part.rows)]
            widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(part.heads))]
            lines = [f"**{_markdown(part.title)}**", ""] if part.title else []
            for number, row in enumerate(cells):
                padded = (
                    cell.ljust(size) if column < part.names else cell.rjust(size)
                    for column, (cell, size) in enumerate(zip(row, widths, strict=True))
                )
                lines.append(f"| {' | '.join(padded)} |")
                if number == 0:
                    rules = (
                        "-" * size if column < part.names else f"{'-' * (size - 1)}:"
                        for column, size in enumerate(widths)
                    )
                    lines.append(f"| {' | '.join(rules)} |")
            pieces.append("\n".join(lines))
        if self.notes:
            pieces.append("\n".join(f"- {_markdown(note)}" for note in self.notes))
        return "\n\n".join(pieces) + "\n"

    def latex(self) -> str:
        r"""Return the table in LaTeX, a ``table`` for each part, the notes below the last.

        It needs the package booktabs, which a comment at the top says.
        """
        pieces = [r"% \usepackage{booktabs}"]
        for place, part in enumerate(self.parts):
            notes = self.notes if place == len(self.parts) - 1 else ()
            pieces.append("\n".join(_latex_table(part, part.title or self.title, notes)))
        return "\n\n".join(pieces) + "\n"

    def csv(self) -> str:
        """Return the numbers as CSV, in raw units and to the last digit; what is not known is empty.

        A value of the grid that has parts is JSON.
        """
        file = StringIO()
        writer = csv.DictWriter(file, list(self._columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _csv_cell(value) for key, value in record.items()} for record in self.records)
        return file.getvalue()

    def frame(self) -> DataFrame:
        """Return the numbers as a data frame of pandas, with the columns of `csv`."""
        import pandas

        return pandas.DataFrame([dict(record) for record in self.records], columns=list(self._columns))

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        pieces = []
        for part in self.parts:
            rows = "".join(f"<tr>{_cells('td', row)}</tr>" for row in part.rows)
            caption = f"<caption>{escape(part.title)}</caption>"
            pieces.append(f"<table>{caption}<tr>{_cells('th', part.heads)}</tr>{rows}</table>")
        return "".join([*pieces, *(f"<p>{escape(note)}</p>" for note in self.notes)])

    @property
    def _columns(self) -> dict[str, Any]:
        return dict.fromkeys(key for record in self.records for key in record)


def latex(text: str) -> str:
    r"""Return text as LaTeX shows it.

    Examples
    --------
    >>> print(latex("fed_avg & 50% (-1.2 ± 0.3, 0.06x)"))
    fed\_avg \& 50\% ($-$1.2 $\pm$ 0.3, 0.06$\times$)
    """
    escaped = "".join(_LATEX.get(character, character) for character in text)
    escaped = re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)
    return re.sub(r"(?<=\d)x\b", r"$\\times$", escaped)


def _latex_table(part: Part, caption: str, notes: Sequence[str]) -> Iterator[str]:
    yield r"\begin{table}"
    yield r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}"
    yield f"  \\caption{{{latex(caption)}}}"
    yield f"  \\begin{{tabular}}{{{'l' * part.names}{'r' * (len(part.heads) - part.names)}}}"
    yield r"    \toprule"
    yield f"    {' & '.join(map(_latex_head, part.heads))} \\\\"
    yield r"    \midrule"
    for row in part.rows:
        # In braces, since a row that begins with a bracket would be read as an option of the line before.
        cells = (f"{{{cell}}}" if cell.startswith("[") else cell for cell in map(latex, row))
        yield f"    {' & '.join(cells)} \\\\"
    yield r"    \bottomrule"
    yield r"  \end{tabular}"
    if notes:
        yield f"  \\par\\smallskip{{\\scriptsize\\raggedright {' '.join(map(latex, notes))}\\par}}"
    yield r"\end{table}"


def _latex_head(text: str) -> str:
    """Return a head in LaTeX, a long one on two lines: columns of numbers are narrow."""
    spaces = [place for place, character in enumerate(text) if character == " "]
    if len(text) <= _LONG_HEAD or not spaces:
        return latex(text)
    middle = min(spaces, key=lambda place: abs(2 * place - len(text)))
    return rf"\shortstack[r]{{{latex(text[:middle])}\\{latex(text[middle + 1 :])}}}"


def _markdown(text: str) -> str:
    """Escape what Markdown would read; a "<" before a number is none of that."""
    return re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", re.sub(r"([\\|*_`])", r"\\\1", text))


def _csv_cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, Mapping | list | tuple) else value


def _cells(tag: str, row: Sequence[str]) -> str:
    return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row)


def _pieces(part: Part, width: int | None) -> Iterator[list[int]]:
    """Yield the columns of each piece that fits into a width, the names first in each."""
    names = list(range(part.names))
    sizes = [
        max(len(row[column]) for row in (part.heads, *part.rows)) + _GAP for column in range(len(part.heads))
    ]
    room = None if width is None else width - sum(sizes[column] for column in names)
    piece: list[int] = []
    for column in range(part.names, len(part.heads)):
        if room is not None and piece and sum(sizes[each] for each in (*piece, column)) > room:
            yield names + piece
            piece = []
        piece.append(column)
    yield names + piece
