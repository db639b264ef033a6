"""`fedprune devices`: what of a scenario fits which device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from fedprune.cli.arguments import OptionalScenario, Settings, load
from fedprune.cli.tables import console_on_stdout, table
from fedprune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from fedprune.costs.devices import DeviceProfile
    from fedprune.scenario import Scenario
    from fedprune.server.sizing import Execution, Fit, Sizing


def devices(
    scenario: OptionalScenario = None,
    settings: Settings = None,
    density: Annotated[
        float | None, typer.Option(metavar="D", help="In place of the scenario's target density.")
    ] = None,
    batch: Annotated[int | None, typer.Option(metavar="N", help="In place of the scenario's batch.")] = None,
) -> None:
    """List device profiles, and what of SCENARIO fits each: peak memory, largest density and batch.

    Without SCENARIO, a YAML file, the profiles alone.
    """
    console = console_on_stdout()
    if scenario is None:
        from fedprune.costs.devices import profiles

        if settings or density is not None or batch is not None:
            raise UserError("name a SCENARIO: --set, --density and --batch say what of it is to fit")
        print_devices(list(profiles().values()), console)
        return
    from fedprune.server.check import check
    from fedprune.server.sizing import clients_of, devices_of, execution_of, sizing

    plan = load(scenario, settings)
    check(plan)
    asked = sizing(plan, density, batch)
    fits = [asked.on(device) for device in devices_of(plan)]
    print_devices([fit.device for fit in fits], console, fits, asked.most)
    clients = clients_of(plan)
    fitting = sum(fits[0].peak <= client.memory for client in clients)
    console.print(
        f"A training step of {plan.name} {asked.what} in batches of {asked.batch} fits "
        f"{fitting} of its {len(clients)} clients.\n"
        "The largest density is at that batch, the largest batch at that density; the layers' densities are "
        f"taken to be {asked.distribution}.\n"
        "Not counted: what a method keeps in rounds that adjust masks, or before it reaches the density.\n"
        f"{describe_execution(plan, asked, execution_of(plan, asked))}",
        markup=False,
        soft_wrap=True,
    )


def describe_execution(plan: Scenario, asked: Sizing, found: Execution) -> str:
    """Return in a sentence or two what this process executes sparse, and what that saves."""
    import torch

    from fedprune.units import format_bytes

    way = f"clients.training.execution: {plan.clients.training.execution}"
    if found.memory is None:
        return f"In a process on this machine ({way}) all layers are executed dense."
    dense, here = asked.step.memory_of({}, asked.batch), found.memory
    states = (
        format_bytes(each.weights + each.gradients + each.optimizer + each.batch_norm)
        for each in (here, dense)
    )
    if found.smaller:
        return (
            "In a process on this machine the model is trained without the pruned channels: a step takes "
            f"at most {format_bytes(here.total)}, by prediction, in place of {format_bytes(dense.total)} for "
            f"the whole one; of these, model, gradients and optimizer {' in place of '.join(states)}."
        )
    return (
        f"In a process on this machine ({torch.backends.cpu.get_cpu_capability()}, {way}) {found.sparse} of "
        f"{found.pruned} pruned layers are executed sparse: such a step takes at most "
        f"{format_bytes(here.total)}, by prediction, in place of {format_bytes(dense.total)} dense; of "
        f"these, model, gradients and optimizer {' in place of '.join(states)}."
    )


def print_devices(
    profiles: Sequence[DeviceProfile], console: Console, fits: Sequence[Fit] = (), most: int = 0
) -> None:
    """Print a row for each device and, where given, what fits it; batches were looked for up to ``most``."""
    from fedprune.units import floor_to, format_byte_rate, format_bytes, format_flop_rate

    heads = ["memory", "compute", "down", "up", "online", "dropout"]
    rows = [
        [
            profile.name,
            format_bytes(profile.memory),
            format_flop_rate(profile.compute),
            format_byte_rate(profile.downlink),
            format_byte_rate(profile.uplink),
            f"{profile.availability:.0%}",
            f"{profile.dropout:.0%}",
        ]
        for profile in profiles
    ]
    if fits:
        heads += ["peak memory", "fits", "largest density", "largest batch"]
    for row, fit in zip(rows, fits, strict=bool(fits)):
        row += [
            format_bytes(fit.peak),
            "yes" if fit.fits else "no",
            "none" if fit.density is None else f"{floor_to(fit.density, 4):g}",
            "none" if fit.batch is None else f"{fit.batch}{'+' if fit.batch == most else ''}",
        ]
    console.print(table(["device"], heads, rows))
