"""What commands share of their arguments: their types, and how they become a scenario.

What an argument is for stands in the command's docstring: typer below 0.21, which Flower asks for, loses
the help of an argument under click 8.5.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedprune.errors import UserError

if TYPE_CHECKING:
    from fedprune.scenario import Scenario

ScenarioPath = Annotated[Path, typer.Argument(metavar="SCENARIO", hidden=True)]
OptionalScenario = Annotated[Path | None, typer.Argument(metavar="[SCENARIO]", hidden=True)]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN_DIR", hidden=True)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Put another value in the scenario; may be repeated."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]


def load(path: Path, settings: Sequence[str] | None, more: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario with the values that were set on the command line."""
    from fedprune.scenario import load_scenario

    return load_scenario(path, {**parse_settings(settings or ()), **(more or {})})


def parse_settings(settings: Iterable[str], option: str = "--set") -> dict[str, str]:
    """Return an option's "KEY=VALUE" texts as a mapping; the last of two with the same key counts.

    Raises
    ------
    UserError
        Where one has no "=" or no key.
    """
    values = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key.strip():
            raise UserError(f"{option} {setting}: write KEY=VALUE, such as {option} strategy.density=0.1")
        values[key.strip()] = value
    return values
