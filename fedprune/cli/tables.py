"""What several commands print: names with a text, costs by class of device, what devices measured."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def console_on_stdout() -> Console:
    """Return a console on standard output; a pipe or a file gets lines as long as they are."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False)


def table(names: Sequence[str], numbers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table of rows of text: columns of names, on the left, then columns of numbers."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in names:
        made.add_column(escape(head), no_wrap=True)
    for head in numbers:
        made.add_column(escape(head), justify="right")
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def print_names(title: str, names: Mapping[str, str], console: Console) -> None:
    """Print two columns under a title: framed on a terminal, plain lines elsewhere."""
    if console.is_terminal:
        from rich import box
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=title, box=box.SIMPLE, show_header=False, title_justify="left")
        table.add_column(no_wrap=True)
        for name, text in names.items():
            table.add_row(escape(name), escape(text))
        console.print(table)
        return
    width = max(map(len, names), default=0)
    lines = [f"  {name:<{width}}  {text}".rstrip() for name, text in names.items()]
    console.print("\n".join([f"{title}:", *(lines or ["  (none)"])]), markup=False, soft_wrap=True)


def print_classes(summaries: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print a row for each class of device of each run, where there are several."""
    from fedprune.results.classes import NOTE, class_rows

    heads, rows = class_rows(summaries)
    if not rows:
        return
    console.print(table(heads[:1], heads[1:], rows))
    console.print(NOTE, soft_wrap=True)


def print_measured(summaries: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    """Print what real devices have measured beside what the cost model says, for runs in which any have."""
    measured = {
        (label, device): of
        for label, summary in summaries.items()
        for device, of in (summary.get("measured") or {}).items()
    }
    if not measured:
        return
    from fedprune.units import format_bytes, format_seconds

    rows = [
        (
            *names,
            str(of["tasks"]),
            format_seconds(of["measured_seconds"]),
            format_seconds(of["device_seconds"]),
            format_bytes(of["measured_memory_bytes"]),
            format_bytes(of["peak_memory_bytes"]),
        )
        for names, of in measured.items()
    ]
    heads = ("tasks", "time, measured", "modelled", "peak memory, measured", "modelled")
    console.print(table(("run", "device"), heads, rows))
    console.print(
        "Measured: computing alone; the memory of the whole process, Python and PyTorch included.\n"
        "Modelled: computing and the network; what training itself allocates.",
        soft_wrap=True,
    )
