"""Asks Optuna for trials, and tells it what their runs came to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fedprune.errors import ScenarioError
from fedprune.studies.execute import Ended
from fedprune.studies.objectives import quantity_of
from fedprune.studies.outcomes import Outcome
from fedprune.studies.plan import PlannedRun
from fedprune.studies.search.journal import quiet, suggested, trial_of
from fedprune.studies.search.pruning import Judge
from fedprune.studies.search.search import REASON

if TYPE_CHECKING:
    from fedprune.studies.search.search import Search


@dataclass
class _Open:
    """A trial that has not ended: its runs that have not begun, that go on, and what ended ones came to."""

    trial: Any
    values: dict[str, Any]
    left: deque[PlannedRun]
    judge: Judge | None
    going: set[str] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)


class Asking:
    """Asks Optuna for trials and tells it what their runs came to; a `fedprune.studies.execute.Supply`.

    Where trials are pruned, the run of the first seed is judged; the others begin after it came to its end.
    """

    def __init__(self, search: Search) -> None:
        self._search = search
        self._study: Any = search.open(create=True)
        self._open: list[_Open] = []
        self._begun = False
        self._interrupted = False

    def next(self) -> PlannedRun | None:
        """Return a run of a trial that goes on, else the first of a new one."""
        if not self._begun:
            self._begun = True
            self._go_on()
        for trial in list(self._open):
            if (run := self._next_of(trial)) is not None:
                return run
        if self._interrupted or any(each.left and not each.going for each in self._open):
            return None  # One waits for a run that another trial has begun: no other can know more before.
        while (asked := len(self._study.get_trials(deepcopy=False))) < self._trials:
            self._study.sampler = self._search.sampler(asked)
            asked_for = self._opened(self._study.ask())
            if asked_for is not None and (run := self._next_of(asked_for)) is not None:
                return run
            if asked_for in self._open:
                break
        return None

    def on_end(self, ended: Ended) -> None:
        """Tell Optuna how a trial ended, where this was its last run."""
        trial = next(each for each in self._open if ended.run.identity in each.going)
        trial.going.discard(ended.run.identity)
        if ended.status == "halted":
            self._tell(trial, "PRUNED")
        elif ended.status == "complete":
            self._take(trial, ended.run)
        elif ended.status == "failed":
            self._tell(trial, "FAIL", ended.reason)
        else:  # Somebody ended its process: the trial goes on when the study is run again.
            self._interrupted = True
            self._open.remove(trial)

    @property
    def _trials(self) -> int:
        return self._search.spec.trials

    def _go_on(self) -> None:
        """Open the trials that had not ended when the study was broken off."""
        from optuna.trial import TrialState

        for found in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if found.number < self._trials:
                self._study.sampler = self._search.sampler(found.number)
                self._opened(trial_of(self._study, found.number)[0])

    def _opened(self, trial: Any) -> _Open | None:
        """Draw what is not drawn yet of a trial, and open it; None where its values do not go together."""
        ranges = self._search.spec.ranges
        with quiet():
            values = {key: suggested(trial, key, ranges[key]) for key in ranges}
        judge = self._search.judge(trial.number)
        made = _Open(trial, values, deque(), judge)
        self._open.append(made)
        try:
            made.left.extend(self._search.plan.searched(self._search.spec, values, trial.number))
        except ScenarioError as error:
            self._tell(made, "FAIL", str(error))
            return None
        return made

    def _next_of(self, trial: _Open) -> PlannedRun | None:
        """Return a trial's next run that can begin now; end the trial where none is left."""
        busy = {identity for each in self._open for identity in each.going}
        for run in list(trial.left):
            if trial.judge is not None and (trial.going and not trial.outcomes):
                return None  # The first one decides.
            if run.identity in busy:
                continue  # Another trial has the same values: it is done once.
            trial.left.remove(run)
            judged = trial.judge if trial.judge is not None and not trial.outcomes else None
            if judged is not None and self._pruned_before(judged, run):
                self._tell(trial, "PRUNED")
                return None
            if self._search.folder.status(run) != "complete":
                trial.going.add(run.identity)
                # One that has not opened the journal: the process does.
                return run if judged is None else replace(run, listeners=(replace(judged),))
            self._take(trial, run)
            if trial not in self._open:
                return None
        return None

    def _pruned_before(self, judge: Judge, run: PlannedRun) -> bool:
        """Tell Optuna of the rounds that a run has already; return whether one of them ends the trial."""
        assert self._search.spec.column is not None
        return any(
            judge.ends(record["round"], record.get(self._search.spec.column))
            for record in self._search.folder.outcome(run).rounds
        )

    def _take(self, trial: _Open, run: PlannedRun) -> None:
        """Take a complete run into its trial; tell Optuna of the trial when it is the last."""
        trial.outcomes.append(self._search.folder.outcome(run))
        if trial.left or trial.going:
            return
        figures = []
        for key in self._search.spec.objective:
            values = [quantity_of(key).of(outcome) for outcome in trial.outcomes]
            known = [value for value in values if value is not None]
            if len(known) < len(values):
                self._tell(trial, "FAIL", f"a run of it has no {key}")
                return
            figures.append(math.fsum(known) / len(known))
        self._tell(trial, "COMPLETE", values=figures)

    def _tell(
        self, trial: _Open, state: str, reason: str | None = None, values: Sequence[float] | None = None
    ) -> None:
        """End a trial."""
        from optuna.trial import TrialState

        self._open.remove(trial)
        if reason is not None:
            trial.trial.set_user_attr(REASON, reason)
        with quiet():
            self._study.tell(trial.trial.number, values, TrialState[state])
