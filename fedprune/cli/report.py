"""`fedprune report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    directories: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", hidden=True)],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The page.  [default: report.html, of one run in its folder, of several here]",
        ),
    ] = None,
    title: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its heading.  [default: the runs' names]")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the others are compared with.  [default: the first dense run]"
        ),
    ] = None,
    target: Annotated[
        float | None, typer.Option(metavar="VALUE", help="Also show what it cost to reach this value.")
    ] = None,
) -> None:
    """Write one HTML page about the runs of some run folders: results, plots, settings, warnings.

    Runs of one scenario that differ in the seed are taken together, with intervals.
    """
    from fedprune.results.run import load_run
    from fedprune.studies.report.single import report_runs

    runs = [load_run(directory) for directory in directories]
    print(report_runs(runs, out, title=title, reference=reference, target=target))
