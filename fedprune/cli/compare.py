"""`fedprune compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedprune.cli.tables import console_on_stdout, print_classes, print_measured


def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", hidden=True)],
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the raw numbers to a CSV file.")
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also draw accuracy over rounds and against each cost."),
    ] = None,
) -> None:
    """Put the runs of some run folders side by side: what they reached and what it cost."""
    from fedprune.results.compare import compare as compare_runs
    from fedprune.results.run import load_run

    comparison = compare_runs([load_run(directory) for directory in directories])
    console = console_on_stdout()
    console.print(comparison.table())
    console.print(comparison.notes(), markup=False)
    labelled = zip(comparison.labels, comparison.runs, strict=True)
    summaries = {label: run.summary for label, run in labelled}
    print_classes(summaries, console)
    print_measured(summaries, console)
    if csv is not None:
        comparison.write_csv(csv)
    if figure is not None:
        comparison.save_figure(figure)
