"""What a study claims: every group beside the reference, as text for a table and as numbers.

`Claim` computes it once. The tables are put together in `fedprune.studies.table`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedprune.errors import UserError
from fedprune.results.measures import UNKNOWN, format_ratio, texts_of
from fedprune.results.records import Record
from fedprune.studies.digits import difference_texts, estimate_texts, format_p, unit_of
from fedprune.studies.outcomes import Metric, Outcome, headline
from fedprune.studies.rendering import Part
from fedprune.studies.statistics import (
    COSTS,
    COSTS_UNTIL,
    OF_SPLIT_TRAINING,
    Comparison,
    CostsUntil,
    Estimate,
    Group,
    GroupSummary,
    Quantity,
    Ranking,
    compare_groups,
    costs_until,
    is_share,
    pareto_fronts,
    quantities,
    rank_groups,
    reference_for,
    summarise_groups,
)

#: Costs with a column of their own; both directions together are the two columns.
_SHOWN = (*(cost for cost in COSTS if cost != "bytes"), *OF_SPLIT_TRAINING)
_COUNTS = ("planned", "complete", "failed", "unfinished", "diverged")
_NEVER = "∞"


@dataclass(frozen=True)
class Claim:
    """Every group of a study, beside the reference where there is one.

    Attributes
    ----------
    metric
        The headline metric.
    summaries
        The groups, in the study's order.
    reference
        The variant that the others are compared with.
    comparisons
        In the final headline metric, by the name of the group.
    ranking
        Of the groups within each seed.
    target, until
        A value of the headline metric, and by the name of the group what it cost to reach it.
    """

    metric: Metric
    summaries: tuple[GroupSummary, ...]
    reference: str | None
    comparisons: Mapping[str, Comparison]
    ranking: Ranking
    target: float | None
    until: Mapping[str, CostsUntil]

    @classmethod
    def of(
        cls, outcomes: Sequence[Outcome], *, reference: str | None = None, target: float | None = None
    ) -> Claim:
        """Compute the claim of some outcomes.

        Raises
        ------
        UserError
            Where there is no outcome, none of the reference, runs of different tasks, or a seed twice.
        """
        if not outcomes:
            raise UserError("no run to make a table of")
        return cls(
            metric=headline(outcomes),
            summaries=tuple(summarise_groups(outcomes)),
            reference=reference,
            comparisons={} if reference is None else compare_groups(outcomes, reference),
            ranking=rank_groups(outcomes),
            target=target,
            until={} if target is None else costs_until(outcomes, target),
        )

    @property
    def names(self) -> list[str]:
        """The names of the groups."""
        return [each.name for each in self.summaries]

    def estimates(self, key: str) -> list[Estimate | None]:
        """Return a quantity's estimate of every group."""
        return [each.estimates.get(key) for each in self.summaries]

    def reference_of(self, group: Group) -> Group | None:
        """Return the group that a group is compared with: its own where it is the reference's."""
        if self.reference is None:
            return None
        if group.variant == self.reference:
            return group
        return reference_for(group, [each.group for each in self.summaries], self.reference)

    def ratio(self, group: Group, quantity: Quantity) -> float | None:
        """Return a cost divided by the reference's, of the seeds that both have; None where it is unknown."""
        other = self.reference_of(group)
        if other is None:
            return None
        ours, theirs = group.values(quantity), other.values(quantity)
        common = sorted(ours.keys() & theirs.keys())
        below = math.fsum(theirs[seed] for seed in common)
        return math.fsum(ours[seed] for seed in common) / below if below else None


def result_part(claim: Claim) -> Part:
    """Return the headline metric of every group: final, best, against the reference, and in ranks."""
    metric = claim.metric
    columns = {
        "runs": [str(each.complete) for each in claim.summaries],
        "density": _means(claim, _quantity(claim, "density")),
        "final": estimate_texts(claim.estimates(metric.final), metric.name),
        "best": estimate_texts(claim.estimates(metric.best), metric.name),
    }
    for which in ("final", "best"):
        personal = claim.estimates(f"{which}_personal_{metric.name}")
        if any(personal):
            columns[f"personal, {which}"] = estimate_texts(personal, metric.name)
    if claim.reference is not None:
        found = [claim.comparisons.get(each) for each in claim.names]
        of_reference = [each.group.variant == claim.reference for each in claim.summaries]
        none = ["reference" if each else UNKNOWN for each in of_reference]
        points = " (points)" if is_share(metric.name) else ""
        columns |= {
            f"minus {claim.reference}{points}": difference_texts(found, metric.name, none),
            "p, t": [format_p(None if each is None else each.t_holm) for each in found],
            "p, Wilcoxon": [format_p(None if each is None else each.wilcoxon_holm) for each in found],
        }
    if len(claim.ranking.mean_ranks) > 1:
        ranks = [claim.ranking.mean_ranks.get(each) for each in claim.names]
        columns["mean rank"] = [UNKNOWN if rank is None else f"{rank:.1f}" for rank in ranks]
    name = metric.name.replace("_", " ")
    direction = "" if metric.higher_is_better else ", lower is better"
    return _part(f"{name[0].upper()}{name[1:]}{unit_of(metric.name)}{direction}", claim, columns)


def cost_part(claim: Claim) -> Part:
    """Return the mean costs of every group, each with its ratio to the reference's."""
    columns = {}
    for key in _SHOWN:
        if not any(claim.estimates(key)):
            continue
        quantity = _quantity(claim, key)
        ratios = [claim.ratio(each.group, quantity) for each in claim.summaries]
        columns[quantity.label] = [
            text if ratio is None or text == UNKNOWN else f"{text} ({format_ratio(ratio)})"
            for text, ratio in zip(_means(claim, quantity), ratios, strict=True)
        ]
    return _part("Costs of a run", claim, columns)


def until_part(claim: Claim) -> Part:
    """Return the median costs of every group until it reached the target, and how many of its runs did."""
    found = [claim.until[each] for each in claim.names]
    columns = {"reached": [f"{each.reached} of {each.ended}" for each in found]}
    for cost in COSTS_UNTIL:
        medians = [each.median(cost.key) for each in found]
        if any(value is not None and math.isfinite(value) for value in medians) or cost.key != "joules":
            columns[cost.label] = [_median_text(value, cost) for value in medians]
    return _part(f"Costs until {target_text(claim)}", claim, columns)


def target_text(claim: Claim) -> str:
    """Return the target in words: "accuracy 60%"."""
    quantity = _quantity(claim, claim.metric.final)
    return f"{claim.metric.name.replace('_', ' ')} {quantity.form(claim.target)}"


def record_of(claim: Claim, summary: GroupSummary) -> Record:
    """Return all numbers of a group, for a row of a CSV file."""
    group = summary.group
    grid = dict.fromkeys(key for each in claim.summaries for key in each.group.point)
    record: Record = {"group": group.name, "variant": group.variant, **grid, **group.point}
    record |= {key: getattr(summary, key) for key in _COUNTS}
    record["seeds"] = " ".join(map(str, summary.seeds))
    for quantity in quantities(claim.metric):
        record |= numbers_of(quantity.key, summary.estimates.get(quantity.key))
        if quantity.key in COSTS:
            record[f"{quantity.key}_relative"] = claim.ratio(group, quantity)
    record |= _comparison_numbers(claim.comparisons.get(group.name))
    record["mean_rank"] = claim.ranking.mean_ranks.get(group.name)
    fronts = pareto_fronts(claim.summaries, claim.metric)
    record |= {f"pareto_{cost}": group.name in fronts.get(cost, ()) for cost in COSTS}
    if claim.target is not None:
        record |= _until_numbers(claim.until[group.name])
    return record


def numbers_of(key: str, estimate: Estimate | None) -> Record:
    """Return an estimate as numbers for a row of a CSV file, each under the key and what it is."""
    t = estimate.t_interval if estimate else None
    bootstrap = estimate.bootstrap_interval if estimate else None
    return {
        f"{key}_n": estimate.n if estimate else 0,
        f"{key}_mean": estimate.mean if estimate else None,
        f"{key}_std": estimate.std if estimate else None,
        f"{key}_t_low": t.low if t else None,
        f"{key}_t_high": t.high if t else None,
        f"{key}_bootstrap_low": bootstrap.low if bootstrap else None,
        f"{key}_bootstrap_high": bootstrap.high if bootstrap else None,
    }


def _comparison_numbers(found: Comparison | None) -> Record:
    p_values = ("t_p", "t_holm", "wilcoxon_p", "wilcoxon_holm")
    return {
        "reference": found.reference if found else None,
        **numbers_of("difference", found.difference if found else None),
        **{key: getattr(found, key) if found else None for key in p_values},
    }


def _until_numbers(until: CostsUntil) -> Record:
    record: Record = {"target": until.target, "ended": until.ended, "reached": until.reached}
    for cost in COSTS_UNTIL:
        record[f"until_{cost.key}_median"] = until.median(cost.key)
        record |= numbers_of(f"until_{cost.key}_of_reached", until.of_reached(cost.key))
    return record


def _part(title: str, claim: Claim, columns: Mapping[str, Sequence[str]]) -> Part:
    return Part(title, ("variant", *columns), tuple(zip(claim.names, *columns.values(), strict=True)))


def _means(claim: Claim, quantity: Quantity) -> list[str]:
    means = [None if each is None else each.mean for each in claim.estimates(quantity.key)]
    return texts_of(means, quantity.form)


def _median_text(value: float | None, cost: Quantity) -> str:
    if value is None:
        return UNKNOWN
    return cost.form(value) if math.isfinite(value) else _NEVER


def _quantity(claim: Claim, key: str) -> Quantity:
    return next(each for each in quantities(claim.metric) if each.key == key)
