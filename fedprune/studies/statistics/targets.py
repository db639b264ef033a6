"""What it costs until the headline metric reaches a target, with the runs that never do.

A run that never reaches the target has no cost until it, but would have cost more than all it spent.
Leaving it out would favour a method that reaches the target only where that is cheap. So it counts as
infinite, the figure to read is the median over all runs, and how many have reached it is always beside.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fedprune.results.records import Record
from fedprune.studies.outcomes import Metric, Outcome, headline
from fedprune.studies.statistics.estimates import Estimate
from fedprune.studies.statistics.groups import group_outcomes
from fedprune.studies.statistics.quantities import TRAFFIC, Quantity, measured

#: What is counted until a target is reached.
COSTS_UNTIL: tuple[Quantity, ...] = (
    Quantity("rounds", "rounds", lambda rounds: f"{rounds:g}"),
    TRAFFIC,
    *(measured(key) for key in ("flops", "device_seconds", "joules")),
)


@dataclass(frozen=True)
class Reach:
    """When a run first reached a target: the round, and what all rounds up to it cost.

    ``costs`` has the keys of `COSTS_UNTIL`; energy is None where that of any of these rounds is unknown.
    """

    round: int
    costs: Mapping[str, float | None]


@dataclass(frozen=True)
class CostsUntil:
    """A group's costs until a target.

    Attributes
    ----------
    group
        Its name.
    target
        The value of the headline metric.
    reaches
        By seed, of all runs that ended, well or not: when the run reached the target; None where it never
        did. Runs that have not begun or can go on are not in it.
    """

    group: str
    target: float
    reaches: Mapping[int, Reach | None]

    @property
    def ended(self) -> int:
        """How many runs there are to count."""
        return len(self.reaches)

    @property
    def reached(self) -> int:
        """How many of them reached the target."""
        return sum(reach is not None for reach in self.reaches.values())

    def median(self, key: str) -> float | None:
        """Return the median cost over all runs that ended, one that never reached the target being infinite.

        It is ``inf`` where too few reached it, and None where there is no run, or the cost of one that
        reached the target is unknown.
        """
        costs = [math.inf if reach is None else reach.costs[key] for reach in self.reaches.values()]
        known = [cost for cost in costs if cost is not None]
        return median(known) if known and len(known) == len(costs) else None

    def of_reached(self, key: str) -> Estimate | None:
        """Return the mean cost of the runs that reached the target; None where none did.

        Unless all did, it says nothing of the method as such: only of the runs in which that went well.
        """
        costs = [reach.costs[key] for reach in self.reaches.values() if reach is not None]
        known = [cost for cost in costs if cost is not None]
        return Estimate.of(known) if known and len(known) == len(costs) else None


def first_reach(outcome: Outcome, metric: Metric, target: float) -> Reach | None:
    """Return the first evaluated round in which a run is as good as the target; None where there is none.

    Costs are those of all rounds up to it, round 0 included.
    """
    for place, record in enumerate(outcome.rounds):
        value = record.get(metric.name)
        if value is not None and metric.reaches(value, target):
            spent = outcome.rounds[: place + 1]
            costs = {cost.key: _SPENT[cost.key](spent) for cost in COSTS_UNTIL}
            return Reach(int(record["round"]), costs)
    return None


def costs_until(outcomes: Sequence[Outcome], target: float) -> dict[str, CostsUntil]:
    """Return the costs until a target of the headline metric, by the name of the group."""
    metric = headline(outcomes)
    return {
        group.name: CostsUntil(
            group.name,
            target,
            {run.seed: first_reach(run, metric, target) for run in group.outcomes if _ended(run)},
        )
        for group in group_outcomes(outcomes)
    }


def _ended(outcome: Outcome) -> bool:
    return outcome.summary is not None and outcome.summary["status"] in ("complete", "failed")


def _total(*keys: str) -> Callable[[Sequence[Record]], float]:
    return lambda rounds: math.fsum(record.get(key) or 0 for record in rounds for key in keys)


def _joules(rounds: Sequence[Record]) -> float | None:
    joules: list[Any] = [record.get("joules") for record in rounds]
    return None if None in joules else math.fsum(joules)


_SPENT: Mapping[str, Callable[[Sequence[Record]], float | None]] = {
    "rounds": lambda rounds: float(rounds[-1]["round"]),
    "bytes": _total("bytes_down", "bytes_up"),
    "flops": _total("flops"),
    "device_seconds": _total("device_seconds"),
    "joules": _joules,
}
