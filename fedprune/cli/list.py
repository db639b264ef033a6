"""`fedprune list`: what a scenario can name."""

from __future__ import annotations

from typing import Annotated

import typer

from fedprune.cli.tables import console_on_stdout, print_names
from fedprune.errors import UserError

# The word on the command line -> the registry's kind.
_KINDS = {
    "strategies": "strategy",
    "aggregators": "aggregator",
    "clients": "client",
    "models": "model",
    "tasks": "task",
    "losses": "loss",
    "metrics": "metric",
    "data": "data",
    "augmentations": "augmentation",
    "shifts": "client_shift",
    "criteria": "criterion",
    "distributions": "distribution",
    "schedules": "schedule",
    "compressors": "compressor",
    "loggers": "logger",
}
_DEVICES = "devices"


def list_names(
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", hidden=True)] = None,
) -> None:
    """List what a scenario can name.

    KIND is one of strategies, aggregators, clients, models, tasks, losses, metrics, data, augmentations,
    shifts, criteria, distributions, schedules, compressors, loggers and devices; all of them where it is left
    out.
    """
    from fedprune import registry

    kinds = (*_KINDS, _DEVICES)
    if kind is not None and kind not in kinds:
        raise UserError(f"nothing is listed under {kind!r}; write one of: {', '.join(kinds)}")
    console = console_on_stdout()
    for each in kinds if kind is None else (kind,):
        names = _devices() if each == _DEVICES else registry.available(_KINDS[each])
        print_names(each, names, console)


def _devices() -> dict[str, str]:
    """Return the built-in device profiles, with a line each."""
    from fedprune.costs.devices import profiles
    from fedprune.units import format_byte_rate, format_bytes, format_flop_rate

    return {
        name: f"{format_bytes(profile.memory)}, {format_flop_rate(profile.compute)}, "
        f"down {format_byte_rate(profile.downlink)}, up {format_byte_rate(profile.uplink)}"
        for name, profile in profiles().items()
    }
