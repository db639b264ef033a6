"""Which groups no other group beats in the headline metric and a cost at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fedprune.studies.outcomes import Metric
from fedprune.studies.statistics.groups import GroupSummary
from fedprune.studies.statistics.quantities import COSTS


def undominated(points: Mapping[str, tuple[float, float]], *, higher_is_better: bool = True) -> list[str]:
    """Return the names of the points that no other dominates, the cheapest first.

    Parameters
    ----------
    points
        By name: a value, and a cost, of which less is better.
    higher_is_better
        Which way the value is better.

    Notes
    -----
    A point dominates another where it is at least as good in both and better in one. So of points that are
    equal in both all are on the front or none.

    Examples
    --------
    >>> undominated({"dense": (0.7, 10.0), "sparse": (0.65, 1.0), "worse": (0.6, 2.0)})
    ['sparse', 'dense']
    """
    sign = 1 if higher_is_better else -1
    front: list[tuple[float, float, str]] = []
    # By cost, and the best first among equal costs: then only what came before can dominate.
    for name, (value, cost) in sorted(points.items(), key=lambda item: (item[1][1], -sign * item[1][0])):
        if not front or sign * value > front[-1][1] or (cost, sign * value) == front[-1][:2]:
            front.append((cost, sign * value, name))
    return [name for _, _, name in front]


def pareto_front(
    summaries: Sequence[GroupSummary], metric: Metric, cost: str, *, value: str | None = None
) -> list[str]:
    """Return the groups on the front of the mean final headline metric against a mean cost, cheapest first.

    ``value`` names another quantity in place of the final metric, such as the best. A group in which either
    is unknown is not on it.
    """
    key = metric.final if value is None else value
    points = {
        each.name: (each.estimates[key].mean, each.estimates[cost].mean)
        for each in summaries
        if key in each.estimates and cost in each.estimates
    }
    return undominated(points, higher_is_better=metric.higher_is_better)


def pareto_fronts(summaries: Sequence[GroupSummary], metric: Metric) -> dict[str, list[str]]:
    """Return the front against every cost that is known of any group, by the key of the cost."""
    fronts = {cost: pareto_front(summaries, metric, cost) for cost in COSTS}
    return {cost: front for cost, front in fronts.items() if front}
