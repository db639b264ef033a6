"""Statistics of a study: pure functions on its outcomes, for tables, figures and the report.

Runs of one seed share data split, initial weights, client sampling and devices, so groups (a variant at a
point of the grid, over seeds) are compared seed by seed. Nothing here writes text for readers or draws:
`fedprune.studies.table` does. SciPy, of the extra ``study``, is imported where it computes.
"""

from fedprune.results.measures import is_share
from fedprune.results.spread import spread_of
from fedprune.studies.statistics.clients import (
    HOW_TO_MEASURE_CLIENTS,
    ClientSpread,
    GroupSpread,
    client_spreads,
    group_spreads,
)
from fedprune.studies.statistics.comparisons import (
    Comparison,
    Ranking,
    compare,
    compare_groups,
    holm,
    rank_groups,
    reference_for,
)
from fedprune.studies.statistics.estimates import CONFIDENCE, Estimate, Interval
from fedprune.studies.statistics.groups import Group, GroupSummary, diverged, group_outcomes, summarise_groups
from fedprune.studies.statistics.pareto import pareto_front, pareto_fronts, undominated
from fedprune.studies.statistics.quantities import COSTS, OF_SPLIT_TRAINING, Quantity, quantities
from fedprune.studies.statistics.targets import COSTS_UNTIL, CostsUntil, Reach, costs_until, first_reach

__all__ = [
    "CONFIDENCE",
    "COSTS",
    "COSTS_UNTIL",
    "HOW_TO_MEASURE_CLIENTS",
    "OF_SPLIT_TRAINING",
    "ClientSpread",
    "Comparison",
    "CostsUntil",
    "Estimate",
    "Group",
    "GroupSpread",
    "GroupSummary",
    "Interval",
    "Quantity",
    "Ranking",
    "Reach",
    "client_spreads",
    "compare",
    "compare_groups",
    "costs_until",
    "diverged",
    "first_reach",
    "group_outcomes",
    "group_spreads",
    "holm",
    "is_share",
    "pareto_front",
    "pareto_fronts",
    "quantities",
    "rank_groups",
    "reference_for",
    "spread_of",
    "summarise_groups",
    "undominated",
]
