"""Groups against a reference, seed by seed, and groups in ranks.

Runs of one seed share data split, initial weights, client sampling and devices. Their differences vary less
than the runs do, so differences are what is estimated and tested; a seed that only one side has is left
out, and named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from fedprune.errors import UserError
from fedprune.studies.outcomes import Outcome, headline
from fedprune.studies.statistics.estimates import Estimate
from fedprune.studies.statistics.groups import Group, group_outcomes
from fedprune.studies.statistics.quantities import Quantity, quantities
from fedprune.wording import did_you_mean

#: Digits to which a difference is known: two that differ beyond it are equal but for rounding.
_DIGITS = 12


@dataclass(frozen=True)
class Comparison:
    """A group and its reference in one quantity, seed by seed.

    Attributes
    ----------
    group, reference
        The names of both.
    quantity
        What is compared.
    differences
        The group's value minus the reference's, by seed, of the seeds that both have.
    unpaired
        Seeds that only one of them has, which therefore have no part in it.
    t_holm, wilcoxon_holm
        The p values, adjusted by Holm for all comparisons that were made together; None where there is none.
    """

    group: str
    reference: str
    quantity: Quantity
    differences: Mapping[int, float]
    unpaired: tuple[int, ...] = ()
    t_holm: float | None = None
    wilcoxon_holm: float | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that both have."""
        return tuple(self.differences)

    @cached_property
    def difference(self) -> Estimate | None:
        """The mean difference, with its intervals; None without a common seed."""
        return Estimate.of(self.differences.values()) if self.differences else None

    @cached_property
    def t_p(self) -> float | None:
        """The two-sided p value of the paired t test.

        It is 1 where no seed differs. It is None for fewer than two seeds, and where all differ by the same
        amount: the test then divides by nothing.
        """
        if self.difference is None or self.difference.n < 2:
            return None
        if self.difference.constant:
            return 1.0 if self.difference.mean == 0 else None
        from scipy.stats import ttest_1samp

        return float(ttest_1samp(list(self.differences.values()), 0.0).pvalue)

    @cached_property
    def wilcoxon_p(self) -> float | None:
        """The two-sided p value of Wilcoxon's signed-rank test.

        It assumes no distribution, but of ``n`` seeds it is at least ``2 / 2**n``: five seeds cannot go below
        0.0625. It is 1 where no seed differs, and None for fewer than two seeds.
        """
        if self.difference is None or self.difference.n < 2:
            return None
        if not any(self.differences.values()):
            return 1.0
        from scipy.stats import wilcoxon

        return float(wilcoxon(list(self.differences.values())).pvalue)


@dataclass(frozen=True)
class Ranking:
    """Ranks of groups within each seed, 1 being best; equals share the mean of their ranks.

    Attributes
    ----------
    seeds
        The seeds that all ranked groups have: only these are ranked.
    mean_ranks
        The mean over seeds, by group. A group without any value is not ranked.
    friedman_p
        The p value of Friedman's test that all groups are alike, by its chi-square approximation, which is
        rough for few seeds; None below three groups or two seeds, and where all are equal.
    """

    seeds: tuple[int, ...]
    mean_ranks: Mapping[str, float]
    friedman_p: float | None


def compare(group: Group, reference: Group, quantity: Quantity) -> Comparison:
    """Return the comparison of two groups, without adjusted p values."""
    ours, theirs = group.values(quantity), reference.values(quantity)
    return Comparison(
        group.name,
        reference.name,
        quantity,
        {seed: _difference(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())},
        tuple(sorted(ours.keys() ^ theirs.keys())),
    )


def compare_groups(
    outcomes: Sequence[Outcome], reference: str, key: str | None = None
) -> dict[str, Comparison]:
    """Compare every group with the reference, and adjust the p values for all of them by Holm.

    Parameters
    ----------
    outcomes
        All runs.
    reference
        The variant that the others are compared with: see `reference_for`.
    key
        The quantity: a key of `quantities`. Where it is not given, the final headline metric.

    Returns
    -------
    dict
        By the group's name. The reference's own groups, and groups that have none of its groups to be
        compared with, are not in it.

    Raises
    ------
    UserError
        Where no run has the reference's name, or there is no such quantity.
    """
    metric = headline(outcomes)
    quantity = _named(quantities(metric), metric.final if key is None else key)
    groups = group_outcomes(outcomes)
    found = []
    for group in groups:
        if group.variant != reference and (other := reference_for(group, groups, reference)) is not None:
            found.append(compare(group, other, quantity))
    t, wilcoxon = (holm([getattr(each, p) for each in found]) for p in ("t_p", "wilcoxon_p"))
    return {
        each.group: replace(each, t_holm=t[place], wilcoxon_holm=wilcoxon[place])
        for place, each in enumerate(found)
    }


def reference_for(group: Group, groups: Sequence[Group], reference: str) -> Group | None:
    """Return the group of the reference that a group is compared with.

    Of the reference's groups it is that at the same grid point: the one with most values of the grid, all of
    which the group has too. So dense FedAvg, which has no density, is compared at any density. Where there
    is none, it is the reference's only group; of several none, and the result is None.

    Raises
    ------
    UserError
        Where no group has the reference's name.
    """
    candidates = [each for each in groups if each.variant == reference]
    if not candidates:
        names = list(dict.fromkeys(each.variant for each in groups))
        raise UserError(f"no run is called {reference!r}{did_you_mean(reference, names)}")
    fitting = [
        each
        for each in candidates
        if all(key in group.point and group.point[key] == value for key, value in each.point.items())
    ]
    if fitting:
        return max(fitting, key=lambda each: len(each.point))
    return candidates[0] if len(candidates) == 1 else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values adjusted for having been looked at together; those that are None stay so.

    The smallest of ``m`` is multiplied by ``m``, the next by ``m - 1`` and so on; none is below one before
    it, none above 1.

    Source: Holm (1979), A simple sequentially rejective multiple test procedure.

    Examples
    --------
    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    so_far = 0.0
    for rank, (p, place) in enumerate(known):
        so_far = max(so_far, min(1.0, (len(known) - rank) * p))
        adjusted[place] = so_far
    return adjusted


def rank_groups(outcomes: Sequence[Outcome], key: str | None = None) -> Ranking:
    """Rank the groups within each seed, by the final headline metric or another quantity.

    Raises
    ------
    UserError
        Where there is no such quantity, or neither way of it is better.
    """
    from scipy.stats import friedmanchisquare, rankdata

    metric = headline(outcomes)
    quantity = _named(quantities(metric), metric.final if key is None else key)
    if quantity.higher_is_better is None:
        raise UserError(f"{quantity.label}: neither more nor less of it is better, so it has no ranks")
    groups = group_outcomes(outcomes)
    values = {group.name: found for group in groups if (found := group.values(quantity))}
    seeds = sorted(set.intersection(*map(set, values.values()))) if values else []
    if not seeds:
        return Ranking((), {}, None)
    sign = -1.0 if quantity.higher_is_better else 1.0
    table = [[sign * found[seed] for seed in seeds] for found in values.values()]
    ranks = rankdata(table, axis=0)
    friedman_p = None
    if (
        len(table) >= 3
        and len(seeds) >= 2
        and any(len(set(column)) > 1 for column in zip(*table, strict=True))
    ):
        friedman_p = float(friedmanchisquare(*table).pvalue)
    means = {name: math.fsum(row) / len(seeds) for name, row in zip(values, ranks.tolist(), strict=True)}
    return Ranking(tuple(seeds), means, friedman_p)


def _difference(value: float, reference: float) -> float:
    """Return the difference, without the digits that are rounding alone."""
    largest = max(abs(value), abs(reference))
    if largest == 0:
        return 0.0
    return round(value - reference, _DIGITS - math.ceil(math.log10(largest)))


def _named(known: Sequence[Quantity], key: str) -> Quantity:
    for quantity in known:
        if quantity.key == key:
            return quantity
    keys = [quantity.key for quantity in known]
    raise UserError(f"there is no quantity {key!r}{did_you_mean(key, keys)}; there are {', '.join(keys)}")
