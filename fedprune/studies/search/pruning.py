"""Ends hopeless trials after the round that shows it, in the process that does their run.

Optuna's pruner decides; its rungs are rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.costs.ledger import RoundRecord, TaskRecord
from fedprune.engine.ending import Halted
from fedprune.studies.search.journal import opened, trial_of

if TYPE_CHECKING:
    import optuna

#: Of the trials that came to a rung, one in so many goes on; and each rung is so many times as far.
REDUCTION = 3


@dataclass
class Judge:
    """Ends a run in its own process when Optuna's pruner finds its trial hopeless; a `Listener`.

    It is sent to the process, and opens the journal there.
    """

    journal: Path
    study: str
    trial: int
    column: str
    first_rung: int
    rounds: int
    _trial: Any = field(default=None, init=False, repr=False)
    _told: set[int] = field(default_factory=set, init=False, repr=False)

    def on_task(self, task: TaskRecord) -> None:
        """Do nothing: rounds are judged."""

    def on_round(self, round: RoundRecord) -> None:
        """Tell Optuna how good the round was.

        Raises
        ------
        Halted
            Where the trial is hopeless.
        """
        if self.ends(round.round, round.columns().get(self.column)):
            raise Halted(f"pruned by the search at round {round.round}")

    def ends(self, number: int, value: float | None) -> bool:
        """Tell Optuna of a round; return whether the trial is to end with it.

        Before the first and after the last round there is nothing to save.
        """
        if value is None or not math.isfinite(value) or not 0 < number < self.rounds:
            return False
        if self._trial is None:
            study = opened(self.journal, self.study, pruner=asha(self.first_rung))
            self._trial, known = trial_of(study, self.trial)
            self._told = set(known.intermediate_values)
        if number not in self._told:
            self._told.add(number)
            self._trial.report(value, number)
        return bool(self._trial.should_prune())


def asha(first_rung: int) -> optuna.pruners.BasePruner:
    """Return Optuna's pruner by asynchronous successive halving (Li et al., MLSys 2020)."""
    import optuna

    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first_rung, reduction_factor=REDUCTION)
