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
from fedprune.check import resolve
from fedprune.costs.ledger import Listener
from fedprune.determinism import make_deterministic
from fedprune.engine.simulation import finished, make_strategy, score_locally
from fedprune.errors import UserError
from fedprune.results.folder import RunFolder
from fedprune.results.progress import Progress

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run config names."""
    scenario = resolve(scenario_of(context.run_config))
    if scenario.faults.any:
        raise UserError("faults are injected by `fedprune run` alone: leave out 'faults' here")
    make_deterministic()
    data = datasets.load(scenario)
    heard: list[Listener] = []
    strategy = make_strategy(scenario, data, score_locally(scenario, data), heard)
    out = Path(str(context.run_config.get("out", "") or f"runs/{scenario.name}"))
    overwrite = bool(context.run_config.get("overwrite", False))
    with (
        Progress(scenario.rounds) as progress,
        RunFolder.create(out, scenario, overwrite=overwrite) as folder,
        finished(folder, strategy, data),
    ):
        heard += [folder, progress]
        strategy.start(grid)
