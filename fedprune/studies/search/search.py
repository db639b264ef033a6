"""What a search consists of, and what it has found so far."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.errors import UserError
from fedprune.studies.plan import Plan, PlannedRun, slug
from fedprune.studies.search.journal import opened, quiet
from fedprune.studies.search.pruning import REDUCTION, Judge, asha
from fedprune.studies.spec import SearchSpec
from fedprune.studies.store import StudyFolder

if TYPE_CHECKING:
    import optuna

    from fedprune.studies.search.asking import Asking

JOURNAL = "search.journal"
#: What Optuna's trial has why it failed under.
REASON = "reason"
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}


@dataclass(frozen=True)
class Trial:
    """One trial of a search.

    Attributes
    ----------
    number
        From 0 on, in the order in which they were begun.
    values
        Dotted key to the value that was tried.
    state
        "complete", "pruned", "failed" or "running".
    figures
        Of a complete trial, the mean over the seeds of each objective.
    round
        Of a pruned trial, the round after which it was ended.
    reason
        Why it failed.
    """

    number: int
    values: Mapping[str, Any]
    state: str
    figures: Mapping[str, float] = field(default_factory=dict)
    round: int | None = None
    reason: str | None = None


class Search:
    """What a search consists of, and what it has found so far.

    Parameters
    ----------
    spec : SearchSpec
        What the study file says of it.
    plan : Plan
        The study's plan.
    folder : StudyFolder
        The study's folder, which has the journal.
    """

    def __init__(self, spec: SearchSpec, plan: Plan, folder: StudyFolder) -> None:
        self.spec = spec
        self.plan = plan
        self.folder = folder
        self.likely: PlannedRun = plan.searched(spec, {})[0]  # What a run of a trial is like.
        self._study: Any = None

    @property
    def journal(self) -> Path:
        """The file that has the trials of all searches of the study."""
        return self.folder.directory.absolute() / JOURNAL

    @cached_property
    def name(self) -> str:
        """The search's name in the journal: the run's, and a digest of all that its trials depend on.

        The number of trials is not in it: with more of them the search goes on.
        """
        content = {
            "run": self.likely.identity,  # At its point of the grid.
            "search": self.spec.model_dump(mode="json", exclude={"run", "at", "trials", "take"}),
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return f"{slug(self.spec.run)}-{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"

    def open(self, *, create: bool = False) -> optuna.Study | None:
        """Return Optuna's study; None where there is none yet and none is to be made."""
        if self._study is None and (create or self.journal.exists()):
            directions = list(self.spec.objective.values())
            pruner = asha(self.first_rung) if self.spec.prune == "asha" else None
            self._study = opened(self.journal, self.name, directions if create else None, pruner)
        return self._study  # type: ignore[no-any-return]

    @property
    def first_rung(self) -> int:
        """The round of the first rung."""
        return self.spec.prune_from or max(1, math.ceil(self.likely.scenario.rounds / REDUCTION**2))

    # What it has found -------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        """Return the trials so far, by their numbers."""
        study = self.open()
        found = [] if study is None else study.get_trials(deepcopy=False)
        return [self._trial(each) for each in found[: self.spec.trials]]

    def _trial(self, found: optuna.trial.FrozenTrial) -> Trial:
        state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(
            found.state.name, "running"
        )
        figures = dict(zip(self.spec.objective, found.values, strict=True)) if state == "complete" else {}
        last = found.last_step if state == "pruned" else None
        values = {key: found.params[key] for key in self.spec.ranges if key in found.params}
        return Trial(found.number, values, state, figures, last, found.user_attrs.get(REASON))

    @property
    def ended(self) -> bool:
        """Whether all trials have ended."""
        return self.count_ended() == self.spec.trials

    def count_ended(self) -> int:
        """Return how many trials have ended."""
        return sum(trial.state != "running" for trial in self.trials())

    @property
    def planned_runs(self) -> int:
        """How many runs the trials have, one a seed."""
        return self.spec.trials * len(self.spec.seeds)

    @property
    def runs_left(self) -> int:
        """How many runs the trials have at most that have not ended."""
        return (self.spec.trials - self.count_ended()) * len(self.spec.seeds)

    def front(self) -> list[Trial]:
        """Return the complete trials that no other is better than in all objectives, by their numbers.

        With one objective these are the best trial, and those that are as good.
        """
        complete = [trial for trial in self.trials() if trial.state == "complete"]
        return [one for one in complete if not any(self._dominates(other, one) for other in complete)]

    def _dominates(self, one: Trial, other: Trial) -> bool:
        """Say whether a trial is as good as another in all objectives, and better in one."""
        signs = {key: 1 if way == "maximize" else -1 for key, way in self.spec.objective.items()}
        leads = [sign * (one.figures[key] - other.figures[key]) for key, sign in signs.items()]
        return min(leads) >= 0 and max(leads) > 0

    def found(self) -> Trial | None:
        """Return the trial whose values the comparison has; None while it is not known, or where none is.

        That is the best, the first of several that are as good; or the one that the study file names.

        Raises
        ------
        UserError
            Where all trials have ended and none is complete, or not the one that is named.
        """
        if not self.ended:
            return None
        if self.spec.take is not None:
            taken = self.trials()[self.spec.take]
            if taken.state != "complete":
                raise UserError(f"search.take: trial {taken.number} of {self.spec.run} is {taken.state}")
            return taken
        front = self.front()
        if not front:
            reasons = {trial.reason for trial in self.trials() if trial.reason} or {"all were pruned"}
            raise UserError(
                f"the search for {self.spec.run} has no trial that came to its end ({next(iter(reasons))}); "
                f"correct it, and remove {self.journal} to begin anew"
            )
        return front[0] if len(self.spec.objective) == 1 else None

    # Doing it ----------------------------------------------------------------------------

    def supply(self) -> Asking:
        """Return what gives the executor the runs of the trials that have not ended."""
        from fedprune.studies.search.asking import Asking

        return Asking(self)

    def sampler(self, number: int) -> optuna.samplers.BaseSampler:
        """Return what draws the values of a trial.

        Each trial has a seed of its own: a search that was broken off so tries what an unbroken one would.
        """
        import optuna

        seed = self.spec.seed + number
        if self.spec.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        with quiet():
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True)  # For trials that go on.

    def judge(self, trial: int) -> Judge | None:
        """Return what prunes a trial, by Optuna's number of it; None where none is pruned."""
        if self.spec.prune == "none" or self.spec.column is None:
            return None
        rounds = self.likely.scenario.rounds
        return Judge(self.journal, self.name, trial, self.spec.column, self.first_rung, rounds)
