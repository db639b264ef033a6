"""`fedprune run`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedprune.cli.arguments import Quiet, ScenarioPath, Settings, load
from fedprune.cli.ending import endable
from fedprune.cli.tables import console_on_stdout, print_classes, print_names

if TYPE_CHECKING:
    from rich.console import Console

    from fedprune.results.run import Run


def run(
    scenario: ScenarioPath,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder.  [default: runs/NAME]")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Short for --set seed=N.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run in the folder.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the interrupted run in the folder.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run SCENARIO, a YAML file, and write its run folder."""
    began = time.perf_counter()
    from fedprune.engine.simulation import run as run_scenario

    plan = load(scenario, settings, {} if seed is None else {"seed": seed})
    folder = out if out is not None else Path("runs") / plan.name
    with endable(folder) as ending:
        done = run_scenario(
            plan,
            out=folder,
            overwrite=overwrite,
            resume=resume,
            progress=not quiet,
            listeners=[ending],
            began=began,
        )
    print_summary(done, console_on_stdout())


def print_summary(done: Run, console: Console) -> None:
    """Print what a run reached and what it cost, and where its folder is."""
    from fedprune.results.measures import known_measures, metric_form, words

    relative = done.summary.get("relative")
    rows = {m.label: m.text(done.summary, relative) for m in known_measures([done.summary])}
    if faults := done.summary.get("faults"):
        rows["faults"] = ", ".join(f"{count} {kind}" for kind, count in faults.items())
    for whose, spread in (done.summary.get("client_spread") or {}).items():
        form = metric_form(done.summary["headline"])
        fair = "" if spread["jain"] is None else f", Jain's index {spread['jain']:.3f}"
        of = "personal " if whose == "personal" else ""
        rows[f"{of}{words(done.summary['headline'])}, over clients"] = (
            f"mean {form(spread['mean'])}, worst tenth {form(spread['worst'])}{fair}"
        )
    print_names(done.name, rows, console)
    if relative:
        console.print("In brackets: relative to dense FedAvg under the same scenario, by the cost model.")
    print_classes({done.name: done.summary}, console)
    console.print(f"run folder: {done.directory}", soft_wrap=True)
