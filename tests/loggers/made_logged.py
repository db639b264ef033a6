"""Small runs with loggers, for the tests of each: from start to end, and broken off to go on later."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from inprocess import PLAN

from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.engine.hosts import InProcess
from fedprune.engine.simulation import run
from fedprune.results.run import Run
from fedprune.scenario import Scenario
from loggers.read_back import tensorboard_events, wandb_history, wandb_runs

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


class Dies(Breaks):
    """A listener that ends its process in the middle of a round, with nothing tidied up."""

    def __init__(self, round: int, run: Path) -> None:
        super().__init__(round)
        self.run = run

    def on_task(self, task: TaskRecord) -> None:
        if task.round == self.round:
            self.wait_for_trackers()
            os._exit(9)

    def wait_for_trackers(self) -> None:
        """Wait until the rounds that ended are in the files of those that write each at once."""
        until, steps = time.monotonic() + 60, list(range(self.round))
        while time.monotonic() < until:
            shown = [event.step for event in tensorboard_events(self.run).Scalars("density")]
            [part] = wandb_runs(self.run)
            if shown == steps == [row["_step"] for row in wandb_history(part)]:
                return
            time.sleep(0.1)


def killed(out: Path, logging: list[Any]) -> None:
    """Run in a process of its own that dies in round 4, of which the newest checkpoint is of round 2."""
    code = (
        "from pathlib import Path; from loggers.made_logged import Dies, logged_run; "
        f"out = Path({str(out)!r}); "
        f"logged_run(out, {logging!r}, engine__checkpoint_every=2, listeners=[Dies(4, out)])"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    died = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == 9, died.stderr
