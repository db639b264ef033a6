"""Small runs with loggers, for the tests of each: from start to end, and broken off to go on later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inprocess import PLAN

from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run
from fedprune.results.run import Run
from fedprune.scenario import Scenario

DEVICES = [{"profile": "raspberry-pi-4", "share": 0.5}, {"profile": "phone-low-end", "share": 0.5}]
STRATEGY = {"name": "static", "density": 0.2}
ROUNDS = 5


class Breaks:
    """A listener that ends a run in the middle of a round, as Ctrl-C does."""

    def __init__(self, round: int) -> None:
        self.round = round

    def on_task(self, task: TaskRecord) -> None:
        if task.round == self.round:
            raise KeyboardInterrupt

    def on_round(self, round: RoundRecord) -> None:
        pass


def federation(logging: list[Any], directory: Path | None = None, **changes: Any) -> Scenario:
    """Return a federation of `ROUNDS` rounds with these loggers."""
    clients = {**PLAN["clients"], "devices": DEVICES}
    content = {**PLAN, "rounds": ROUNDS, "strategy": STRATEGY, "clients": clients, "logging": logging}
    return Scenario.from_mapping({**content, **changes}, directory)


def logged_run(out: Path, logging: list[Any], **settings: Any) -> Run:
    """Run the federation in this process."""
    settings = {"progress": False, "host": InProcess(), "figures": False, **settings}
    return run(federation(logging), out=out, **settings)


def broken_off(out: Path, logging: list[Any]) -> None:
    """Break a run off in round 4, of which the newest checkpoint is of round 2."""
    with pytest.raises(KeyboardInterrupt):
        logged_run(out, logging, engine__checkpoint_every=2, listeners=[Breaks(4)])
