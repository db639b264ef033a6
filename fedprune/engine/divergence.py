"""What to try where training diverges: said once in a run, at the first sign of it.

Such updates are refused and counted where they arrive; nothing is decided here.
"""

from __future__ import annotations

import logging
from math import isfinite

from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.data.inputs import Pixels
from fedprune.data.standard import Standardised
from fedprune.errors import Fault
from fedprune.scenario import Scenario
from fedprune.tasks import Task

_logger = logging.getLogger(__name__)


class Divergence:
    """Hears of values and losses that are not finite: a listener.

    Parameters
    ----------
    scenario : Scenario
        What is run.
    task : Task
        What is learnt.
    """

    def __init__(self, scenario: Scenario, task: Task) -> None:
        self._scenario, self._task = scenario, task
        self._said = scenario.faults.may_have("not_finite")  # Then it would be no sign of anything.

    def on_task(self, task: TaskRecord) -> None:
        """Hear of a client's update that was refused."""
        if task.fault == Fault.NOT_FINITE:
            self._say(f"client {task.client} in round {task.round}: {task.reason}; such updates are left out")

    def on_round(self, round: RoundRecord) -> None:
        """Hear of the global model's loss, where that was measured."""
        measured = any(value is not None for value in round.scores.values())
        if measured and (round.loss is None or not isfinite(round.loss)):
            self._say(f"the loss of the global model after round {round.round} is not finite")

    def _say(self, sign: str) -> None:
        if self._said:
            return
        self._said = True
        _logger.warning("training diverges (%s). What may help: %s", sign, ", ".join(self.remedies()))

    def remedies(self) -> list[str]:
        """Return what may help in this scenario, the likeliest first."""
        optimizer = self._scenario.clients.training.optimizer
        found = [f"a clients.training.optimizer.lr below {optimizer.lr:g}"]
        if optimizer.name != "adam":
            found.append("clients.training.optimizer {name: adam, lr: 0.001}")
        if self._task.answers == "numbers":
            found.append("numbers to predict that are divided by their standard deviation")
        inputs = self._task.info.inputs
        if inputs.dtype.is_floating_point and not isinstance(inputs, Pixels | Standardised):
            found.append("inputs that are standardised")
        return found
