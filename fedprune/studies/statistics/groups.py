"""Groups of runs that differ in the seed alone, and the estimates of each.

A run that has not ended well has no part in an estimate, since its values are those of another number of
rounds; it is counted. One that diverged has: leaving it out would flatter its method.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from fedprune.errors import UserError
from fedprune.studies.outcomes import Metric, Outcome, headline
from fedprune.studies.statistics.estimates import Estimate
from fedprune.studies.statistics.quantities import Quantity, quantities


@dataclass(frozen=True)
class Group:
    """A variant at one point of the grid: its runs, by seed.

    Attributes
    ----------
    name
        What readers see: see `Outcome.group`.
    variant, point
        The run's name in the study file, and the grid's values.
    outcomes
        All its runs, ended or not, by seed.
    """

    name: str
    variant: str
    point: Mapping[str, Any]
    outcomes: tuple[Outcome, ...] = field(repr=False)

    @cached_property
    def complete(self) -> tuple[Outcome, ...]:
        """The runs that have ended well."""
        return tuple(outcome for outcome in self.outcomes if outcome.complete)

    def values(self, quantity: Quantity) -> dict[int, float]:
        """Return the quantity by seed, of the complete runs that have it."""
        found = ((outcome.seed, quantity.of(outcome)) for outcome in self.complete)
        return {seed: value for seed, value in found if value is not None}


@dataclass(frozen=True)
class GroupSummary:
    """What a group's runs came to.

    Attributes
    ----------
    group
        The runs.
    estimates
        By the key of the quantity, over the complete runs that have it; without those that no run has.
    failed
        Runs that ended with an error.
    unfinished
        Runs that have begun and not ended, or were broken off.
    diverged
        Complete runs that ended without a finite headline metric or loss.
    """

    group: Group
    estimates: Mapping[str, Estimate]
    failed: int
    unfinished: int
    diverged: int

    @property
    def name(self) -> str:
        """The group's name for readers."""
        return self.group.name

    @property
    def planned(self) -> int:
        """All runs of the group, those that have not begun among them."""
        return len(self.group.outcomes)

    @property
    def complete(self) -> int:
        """Runs that have ended well."""
        return len(self.group.complete)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the complete runs."""
        return tuple(outcome.seed for outcome in self.group.complete)


def group_outcomes(outcomes: Iterable[Outcome]) -> list[Group]:
    """Return the groups of some outcomes, in the order in which each first appears.

    Raises
    ------
    UserError
        Where a group has a seed twice: the run would count twice, and could not be paired.
    """
    members: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        point = json.dumps(dict(outcome.point), sort_keys=True, default=str)
        members.setdefault((outcome.variant, point), []).append(outcome)
    groups = []
    for runs in members.values():
        first = runs[0]
        seed, times = Counter(run.seed for run in runs).most_common(1)[0]
        if times > 1:
            raise UserError(f"{first.group}: {times} runs have seed {seed}; give each seed once")
        ordered = tuple(sorted(runs, key=lambda run: run.seed))
        groups.append(Group(first.group, first.variant, first.point, ordered))
    return groups


def summarise_groups(outcomes: Sequence[Outcome]) -> list[GroupSummary]:
    """Return the summary of every group, in the order in which each first appears.

    Raises
    ------
    UserError
        Where the runs have different headline metrics, or a group has a seed twice.
    """
    metric = headline(outcomes)
    return [_summary(group, metric) for group in group_outcomes(outcomes)]


def diverged(outcome: Outcome, metric: Metric) -> bool:
    """Return whether a complete run ended without a finite headline metric, or loss of its last evaluation.

    The records hold null in place of NaN and infinity.
    """
    if not outcome.complete:
        return False
    summary = outcome.summary or {}
    if not _finite(summary.get(metric.final)):
        return True
    evaluated = [record for record in outcome.rounds if record.get(metric.name) is not None]
    return bool(evaluated) and "loss" in evaluated[-1] and not _finite(evaluated[-1]["loss"])


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _summary(group: Group, metric: Metric) -> GroupSummary:
    begun = [outcome.summary["status"] for outcome in group.outcomes if outcome.summary is not None]
    values = {quantity.key: group.values(quantity) for quantity in quantities(metric)}
    return GroupSummary(
        group,
        {key: Estimate.of(found.values()) for key, found in values.items() if found},
        failed=begun.count("failed"),
        unfinished=len(begun) - begun.count("failed") - begun.count("complete"),
        diverged=sum(diverged(outcome, metric) for outcome in group.outcomes),
    )
