"""`fedprune deploy init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedprune.cli.arguments import OptionalScenario, Settings, load, parse_settings


def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", hidden=True)],
    scenario: OptionalScenario = None,
    settings: Settings = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The server's name or address, as devices reach it.  [default: localhost]",
            show_default=False,
        ),
    ] = "localhost",
    port: Annotated[
        int, typer.Option(metavar="N", help="The server's port.  [default: 8000]", show_default=False)
    ] = 8000,
    name: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What flwr run calls the deployment.  [default: edge]", show_default=False
        ),
    ] = "edge",
    days: Annotated[
        int,
        typer.Option(
            metavar="N", help="How long certificates are valid.  [default: 825]", show_default=False
        ),
    ] = 825,
) -> None:
    """Write DIR, all that it takes to run SCENARIO, a YAML file, on real devices, one client each.

    Certificates, keys, start scripts, systemd units, Flower's configuration, and a README with the commands.
    Without SCENARIO, a small trial on three devices.
    """
    from fedprune.deployment import init as write
    from fedprune.deployment import trial

    plan = trial(parse_settings(settings or ())) if scenario is None else load(scenario, settings)
    write(directory, plan, host=host, port=port, connection=name, days=days)
    devices = "1 device" if plan.clients.count == 1 else f"{plan.clients.count} devices"
    print(f"{directory}: {plan.name} for {devices} and {host}:{port}; what to do next: {directory}/README.md")
