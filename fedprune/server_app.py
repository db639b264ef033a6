"""Flower's ``ServerApp`` for a scenario: builds its strategy and starts it on the grid it is given.

``flwr run .`` loads ``app`` from here. The run config names the scenario and, if need be, the run
folder (``out``) and values to replace (``set``, as "key=value key=value").
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedprune import data as datasets
from fedprune.app_config import scenario_of
from fedprune.check import check
from fedprune.determinism import make_deterministic
from fedprune.engine.simulation import score_locally, serve
from fedprune.results.folder import RunFolder
from fedprune.results.progress import Progress

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run config names."""
    scenario = scenario_of(context.run_config)
    check(scenario)
    make_deterministic()
    data = datasets.load(scenario)
    out = Path(str(context.run_config.get("out", "") or f"runs/{scenario.name}"))
    folder = RunFolder.create(out, scenario, overwrite=bool(context.run_config.get("overwrite", False)))
    with Progress(scenario.rounds) as progress:
        serve(scenario, data, grid, score_locally(scenario, data), folder, [progress])
