"""Flower's ``ServerApp`` for a scenario: builds its strategy and starts it on the grid it is given.

``flwr run .`` loads ``app`` from here. The run config names the scenario and, if need be, the run
folder (``out``) and values to replace (``set``, as "key=value key=value"). With ``resume`` it goes on with
the run in the folder. ``min-clients`` is how many devices it waits for before it starts, 0 for all of
them, and ``wait`` for how many seconds.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from flwr.app import Context, UserConfig
from flwr.serverapp import Grid, ServerApp

from fedprune import data as datasets
from fedprune.compiler import leave_out
from fedprune.costs.ledger import Listener
from fedprune.determinism import make_deterministic
from fedprune.engine.divergence import Divergence
from fedprune.engine.flower_grid import FlowerGrid
from fedprune.engine.simulation import (
    BestModel,
    finished,
    goes_on,
    make_strategy,
    opened,
    remember,
    score_locally,
)
from fedprune.errors import UserError
from fedprune.loggers.channels import logged
from fedprune.protocol.run_config import scenario_of
from fedprune.results.plugin_copies import warn_of_changes
from fedprune.results.progress import Progress
from fedprune.scenario import Scenario
from fedprune.server.check import resolve, stays_dense
from fedprune.server.roll_call import RollCall

leave_out()
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the scenario that the run config names."""
    began, config = time.perf_counter(), context.run_config
    plan = scenario_of(config)
    out = Path(str(config.get("out", "") or f"runs/{plan.name}"))
    warn_of_changes(out, plan.directory)
    resume = bool(config.get("resume", False))
    resumes = goes_on(out, resume)
    scenario = resolve(plan, resumes=resumes)
    if scenario.faults.any:
        raise UserError("faults are injected by `fedprune run` alone: leave out 'faults' here")
    make_deterministic(scenario.engine.instructions)
    data = datasets.load(scenario)
    heard: list[Listener] = []
    strategy = make_strategy(scenario, data, score_locally(scenario, data), heard, resumes=resumes)
    _be_patient(strategy.roll_call, scenario, config)
    with ExitStack() as stack:
        folder, checkpoint = opened(
            stack,
            strategy,
            out,
            overwrite=bool(config.get("overwrite", False)),
            resume=resume,
        )
        folder.began = began
        if checkpoint is not None:
            strategy.exchange.forget_masks()  # Devices keep nothing from one run of Flower's to the next.
        shown = stack.enter_context(Progress(scenario.rounds))
        if dense := stays_dense(strategy.module, strategy.options, strategy.task, strategy.traced_groups):
            shown.note(dense)
        told = stack.enter_context(logged(folder, checkpoint.round if checkpoint is not None else None))
        heard += [folder, shown, told, Divergence(scenario, strategy.task)]
        heard += [BestModel(folder, strategy), remember(folder, strategy)]
        with finished(folder, strategy):
            told.wait(heard)
            folder.started()
            strategy.start(FlowerGrid(grid))


def _be_patient(roll_call: RollCall, scenario: Scenario, config: UserConfig) -> None:
    """Say for how many devices a run waits, and for how long."""
    wanted, wait = config.get("min-clients", 0), config.get("wait", scenario.engine.timeout)
    count = scenario.clients.count
    if not isinstance(wanted, int) or not 0 <= wanted <= count:
        raise UserError(f"run config 'min-clients' is {wanted!r}: give 1 to {count}, or 0 for all clients")
    if not isinstance(wait, int | float) or not wait > 0:
        raise UserError(f"run config 'wait' is {wait!r}: give seconds above 0")
    roll_call.start_with, roll_call.patience = wanted or count, float(wait)
