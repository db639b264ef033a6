"""`fedprune bench-model`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedprune.cli.tables import console_on_stdout, table

if TYPE_CHECKING:
    from rich.console import Console

    from fedprune.results.bench_model import Cost


def bench_model(file: Annotated[Path, typer.Argument(metavar="FILE", hidden=True)]) -> None:
    """Measure FILE, a model that was exported, beside the same model without pruning."""
    from fedprune.results.bench_model import bench

    print_bench(file, *bench(file), console_on_stdout())


def print_bench(file: Path, ours: Cost, dense: Cost, console: Console) -> None:
    """Print what a model file costs beside its dense model."""
    from fedprune.units import format_bytes, format_seconds

    def row(name: str, of: float | None, than: float | None, text: Callable[[Any], str]) -> tuple[str, ...]:
        shown = ("-" if each is None else text(each) for each in (of, than))
        return name, *shown, f"{of / than:.2f}x" if of is not None and than else "-"

    rows = [
        row("size", ours.size, dense.size, format_bytes),
        row("latency", ours.seconds, dense.seconds, format_seconds),
        row("peak memory", ours.memory, dense.memory, format_bytes),
    ]
    console.print(table([""], [file.name, "dense", "ratio"], rows))
    console.print(
        "One input, one thread, median; memory is what reading the file and the first inferences add.\n"
        "Dense is the same model with all its weights, in 32 bits. Both are computed with dense kernels:\n"
        "zeros make the file smaller, and no inference faster.",
        markup=False,
        soft_wrap=True,
    )
