"""The commands of `fedprune`, put together, and their entry point.

A command is a function in a file of its own. It reads its arguments, calls one function of the package and
prints the result; PyTorch, Ray and Flower are imported inside it, so that help comes at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from fedprune import __version__
from fedprune.cli.bench_model import bench_model
from fedprune.cli.compare import compare
from fedprune.cli.deploy import init
from fedprune.cli.devices import devices
from fedprune.cli.ending import exit_status
from fedprune.cli.export import export
from fedprune.cli.list import list_names
from fedprune.cli.report import report
from fedprune.cli.resume import resume
from fedprune.cli.run import run
from fedprune.cli.schema import schema
from fedprune.cli.study import plot as plot_study
from fedprune.cli.study import report as report_study
from fedprune.cli.study import run as run_study
from fedprune.cli.study import show_table, watch
from fedprune.cli.validate import validate
from fedprune.compiler import leave_out

app = typer.Typer(
    help="Run federated pruning from one YAML file, and know what it costs every client.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
deploy = typer.Typer(
    help="Run a scenario on real devices, over Flower's SuperLink and SuperNodes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
study = typer.Typer(
    help="Run several methods, settings and seeds as one study, and compare them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """Run federated pruning from one YAML file, and know what it costs every client."""
    if show:
        print(f"fedprune {__version__}")
        raise typer.Exit


# Help lists them in this order.
app.command("run")(run)
app.command("resume")(resume)
app.command("validate")(validate)
app.command("schema")(schema)
app.command("list")(list_names)
app.command("devices")(devices)
app.command("compare")(compare)
study.command("run")(run_study)
study.command("table")(show_table)
study.command("plot")(plot_study)
study.command("report")(report_study)
study.command("watch")(watch)
app.add_typer(study, name="study")
app.command("report")(report)
app.command("export")(export)
app.command("bench-model")(bench_model)
deploy.command("init")(init)
app.add_typer(deploy, name="deploy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, the process's own by default; return its exit status."""
    leave_out()
    return exit_status(lambda: app(arguments, prog_name="fedprune", standalone_mode=False))
