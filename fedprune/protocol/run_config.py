"""Which scenario a Flower run config means: the same answer on the server and on every client."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from flwr.app import UserConfig

from fedprune.errors import ScenarioError
from fedprune.scenario import Scenario, load_scenario


def scenario_of(run_config: UserConfig) -> Scenario:
    """Return the scenario that a run config names.

    ``scenario`` is a path, relative to the app's folder or to the working directory; ``set`` holds
    values to replace, as "key=value key=value" with the shell's quotes.

    Raises
    ------
    ScenarioError
        If the run config names none, or what it names is not a scenario.
    """
    name = str(run_config.get("scenario", ""))
    if not name:
        raise ScenarioError(
            """the run config names no scenario: --run-config 'scenario="scenarios/x.yaml"'"""
        )
    try:
        assignments = shlex.split(str(run_config.get("set", "")))
    except ValueError as error:
        raise ScenarioError(f"run config 'set': {error}") from None
    overrides = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ScenarioError(f"run config 'set': {assignment!r} is not KEY=VALUE")
        overrides[key] = value
    return load_scenario(_file(name), overrides)


def _file(name: str) -> Path:
    """Return the file of that name.

    Looked for, in this order, where it says, beside the package (an app that has its code with it), and in
    the folders that Flower has put on the import path (an app whose code is installed).
    """
    path = Path(name)
    if path.is_absolute() or path.exists():
        return path
    folders = (Path(__file__).resolve().parents[2], *map(Path, filter(None, sys.path)))
    return next((folder / path for folder in folders if (folder / path).is_file()), path)
