"""`fedprune study`: run a study, and show what it came to."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedprune.cli.arguments import Quiet, parse_settings
from fedprune.cli.ending import endable_study
from fedprune.cli.tables import console_on_stdout, table
from fedprune.errors import RunError, UserError

if TYPE_CHECKING:
    from fedprune.studies.study import Jobs, Study

StudyFile = Annotated[Path, typer.Argument(metavar="FILE", hidden=True)]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="The study's folder.  [default: runs/NAME]")
]

BaseSettings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Put another value in the base; may be repeated."),
]


class Format(StrEnum):
    """How a table is written."""

    text = "text"
    markdown = "markdown"
    latex = "latex"
    csv = "csv"


class What(StrEnum):
    """What a figure shows."""

    curves = "curves"
    costs = "costs"
    spent = "spent"


class Rows(StrEnum):
    """What a table has a row for."""

    groups = "groups"
    runs = "runs"
    clients = "clients"
    trials = "trials"


def run(
    file: StudyFile,
    settings: BaseSettings = None,
    out: Out = None,
    jobs: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            show_default=False,
            help="Runs at a time; auto: as cores, memory and GPUs allow.  [default: auto]",
        ),
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what there is to do and how long it should take, and stop.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run the runs of FILE, a study, that are not complete yet, and print the table of all."""
    study = _open(file, settings, out)
    study.check_target()
    at_a_time = _jobs(jobs)
    if dry_run or not quiet:
        _announce(study, at_a_time, list_runs=dry_run)
    if dry_run:
        return
    with endable_study(study):
        study.run(jobs=at_a_time, progress=not quiet)
    print(study.claims().text(_width()))
    print(f"study folder: {study.directory}")
    failed = study.missing()
    if failed:
        raise RunError(f"{len(failed)} of {len(study.planned())} runs failed; above are their reasons")


def show_table(
    file: StudyFile,
    settings: BaseSettings = None,
    out: Out = None,
    form: Annotated[
        Format, typer.Option("--format", show_default=False, help="How it is written.  [default: text]")
    ] = Format.text,
    rows: Annotated[
        Rows,
        typer.Option(
            "--rows",
            show_default=False,
            help="What has a row: groups, runs, clients, trials.  [default: groups]",
        ),
    ] = Rows.groups,
) -> None:
    """Print the table of a study, FILE: what its runs reached, with intervals, and what that cost."""
    from fedprune.studies.table import client_table, seed_table

    study = _open(file, settings, out)
    if rows is Rows.groups:
        made = study.claims()
    elif rows is Rows.trials:
        made = study.trial_table()
    else:
        made = seed_table(study.outcomes) if rows is Rows.runs else client_table(study.outcomes)
    texts = {
        Format.text: lambda: made.text(_width()),
        Format.markdown: made.markdown,
        Format.latex: made.latex,
        Format.csv: made.csv,
    }
    print(texts[form]().rstrip("\n"))


def plot(
    file: StudyFile,
    settings: BaseSettings = None,
    out: Out = None,
    what: Annotated[
        What,
        typer.Option(
            "--what",
            show_default=False,
            help="The headline metric over rounds; at the end, against a cost; or the best so far, against "
            "what was spent so far.  [default: curves]",
        ),
    ] = What.curves,
    cost: Annotated[
        str,
        typer.Option(
            metavar="COST",
            show_default=False,
            help="Which cost, such as bytes_up, flops or device_seconds.  [default: bytes]",
        ),
    ] = "bytes",
    personal: Annotated[
        bool, typer.Option("--personal", help="Of the clients' own models in place of the global one.")
    ] = False,
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE", help="Draw the runs with this value of the grid alone; may be repeated."
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="IMAGE", help="The figure: pdf, svg or png.  [default: DIR/WHAT.pdf]"),
    ] = None,
) -> None:
    """Draw a figure of a study, FILE, for a paper: one column wide, in vectors."""
    from fedprune.scenario.yaml_file import parse

    study = _open(file, settings, out)
    points = {key: parse(value, f"--at {key}") for key, value in parse_settings(at or (), "--at").items()}
    path = study.directory / f"{what}.pdf" if to is None else to
    if path.suffix not in (".pdf", ".svg", ".png"):
        raise UserError(f"--to {path}: name a file that ends in .pdf, .svg or .png")
    figure: Any = study.plot(what.value, cost=cost, personal=personal, at=points).figure
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=300)
    print(path)


def report(
    file: StudyFile,
    settings: BaseSettings = None,
    out: Out = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="PAGE", help="The page.  [default: DIR/report.html]")
    ] = None,
    refresh: Annotated[
        int | None,
        typer.Option(
            metavar="SECONDS",
            help="Write it again every so often until all runs are complete; the open page follows.",
        ),
    ] = None,
) -> None:
    """Write a study, FILE, as one HTML page: tables, curves, costs, settings, warnings."""
    study = _open(file, settings, out)
    while True:
        done = study.finished
        page = study.report(to, refresh=None if done else refresh)
        if done or refresh is None:
            break
        time.sleep(max(refresh, 1))
    print(page)


def watch(
    file: StudyFile,
    settings: BaseSettings = None,
    out: Out = None,
    every: Annotated[
        float,
        typer.Option(metavar="SECONDS", show_default=False, help="Seconds between looks.  [default: 2]"),
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and stop.")] = False,
) -> None:
    """Show how far each run of a study, FILE, is, until all are complete."""
    study = _open(file, settings, out)
    console = console_on_stdout()
    while True:
        runs = [*study.trials(), *study.planned()]
        states = [study.folder.status(run) for run in runs]
        rows = [
            (run.group, str(run.seed), state, f"{study.folder.rounds_done(run)}/{run.scenario.rounds}")
            for run, state in zip(runs, states, strict=True)
        ]
        for search in study.searches:
            seeds = ", ".join(map(str, search.spec.seeds))
            rows += [
                (f"{search.spec.run}, trial {trial.number}", seeds, trial.state, "")
                for trial in search.trials()
            ]
        if console.is_terminal and not once:
            console.clear()
        console.print(table(("run",), ("seed", "status", "rounds"), rows))
        console.print(f"{states.count('complete')} of {len(runs)} runs are complete{study.searched_text()}")
        if once or study.finished:
            return
        time.sleep(max(every, 0.1))


def _open(file: Path, settings: Sequence[str] | None, out: Path | None) -> Study:
    from fedprune.studies.study import study

    return study(file, out=out, overrides=parse_settings(settings or ()))


def _jobs(text: str) -> Jobs:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"--jobs {text}: write a whole number from 1 on, or auto")
    return int(text)


def _announce(study: Study, jobs: Jobs, *, list_runs: bool) -> None:
    """Say on standard error what there is to do, and how long it should take."""
    runs = [*study.trials(), *study.planned()]
    if list_runs:
        rows = [
            (run.group, str(run.seed), "tuning" if run.trial else "", study.folder.status(run))
            for run in runs
        ]
        for search in study.searches:
            seeds = ", ".join(map(str, search.spec.seeds))
            state = f"{search.count_ended()} ended"
            rows.append((f"{search.spec.run}, {search.spec.trials} trials", seeds, "search", state))
        console_on_stdout().print(table(("run",), ("seed", "", "status"), rows))
    text = study.progress_text(None if jobs == "auto" else jobs)
    print(f"{study.spec.name}: {text}", file=sys.stderr, flush=True)


def _width() -> int | None:
    """Return how wide a table may be: a pipe or a file gets lines as long as they are."""
    return console_on_stdout().width if sys.stdout.isatty() else None
