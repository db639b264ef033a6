"""The tables of a report that no other command has: what lies behind its plots, and classes of devices.

All are parts as `fedprune.studies.rendering` has them, which are text. The claim and the spread over clients
come from `fedprune.studies.table`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fedprune.results.classes import class_rows
from fedprune.results.measures import UNKNOWN
from fedprune.results.records import Record
from fedprune.studies.digits import estimate_texts, unit_of
from fedprune.studies.outcomes import Metric
from fedprune.studies.rendering import Part
from fedprune.studies.report.figures import over_rounds
from fedprune.studies.report.looks import Look
from fedprune.studies.statistics import GroupSummary, Quantity

_MOST_ROUNDS = 8
_NOTHING = ("0", "0%", "0.00%", UNKNOWN)


def rounds_part(looks: Sequence[Look], metric: Metric) -> Part:
    """Return the headline metric of every group in some rounds: what lies behind its curves."""
    curves = [over_rounds(look, metric.name) for look in looks]
    rounds = _some(sorted({number for curve in curves for number in curve}))
    columns = [estimate_texts([curve.get(number) for curve in curves], metric.name) for number in rounds]
    return Part(
        f"{metric_words(metric).capitalize()}{unit_of(metric.name)} by round, ± the 95 % t interval",
        ("group", *(f"round {number}" for number in rounds)),
        tuple(zip((look.name for look in looks), *columns, strict=True)),
    )


def pareto_part(
    summaries: Sequence[GroupSummary], metric: Metric, cost: Quantity, front: Sequence[str]
) -> Part:
    """Return the means of the headline metric and of a cost, and which groups are on the front."""
    costs = [each.estimates.get(cost.key) for each in summaries]
    columns = {
        f"{metric_words(metric)}, final{unit_of(metric.name)}": estimate_texts(
            [each.estimates.get(metric.final) for each in summaries], metric.name
        ),
        cost.label: [UNKNOWN if each is None else cost.form(each.mean) for each in costs],
        "on the front": ["yes" if each.name in front else "no" for each in summaries],
    }
    return Part(
        f"{metric_words(metric).capitalize()} and {cost.label}",
        ("group", *columns),
        tuple(zip((each.name for each in summaries), *columns.values(), strict=True)),
    )


def class_means(summaries: Sequence[GroupSummary]) -> dict[str, dict[str, Record]]:
    """Return what each class of devices counted and spent, the mean over a group's complete runs.

    By the group's name and the class's.
    """
    means: dict[str, dict[str, Record]] = {}
    for each in summaries:
        runs = [(outcome.summary or {}).get("classes") or {} for outcome in each.group.complete]
        names = dict.fromkeys(name for classes in runs for name in classes)
        means[each.name] = {
            name: _mean_record([classes[name] for classes in runs if name in classes]) for name in names
        }
    return means


def classes_part(means: Mapping[str, Mapping[str, Record]]) -> Part | None:
    """Return the table of device classes, without columns of nothing; None where no group has two."""
    heads, rows = class_rows({name: {"classes": classes} for name, classes in means.items()})
    if not rows:
        return None
    names = 2 if heads[0] == "run" else 1
    shown = [n for n in range(len(heads)) if n < names or any(row[n] not in _NOTHING for row in rows)]
    return Part(
        "By class of device, the mean of a group's complete runs",
        tuple("group" if heads[n] == "run" else heads[n] for n in shown),
        tuple(tuple(row[n] for n in shown) for row in rows),
        names,
    )


def metric_words(metric: Metric) -> str:
    """Return a metric's name in words."""
    return metric.name.replace("_", " ")


def _mean_record(records: Sequence[Record]) -> Record:
    mean: Record = {}
    for key in dict.fromkeys(key for record in records for key in record):
        values = [record.get(key) for record in records]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            mean[key] = None  # As in a run: what is unknown of one is unknown of all.
            continue
        value = math.fsum(known) / len(known)
        counts = all(isinstance(each, int) for each in known)
        mean[key] = int(value) if value.is_integer() and counts else round(value, 1) if counts else value
    return mean


def _some(rounds: Sequence[int]) -> list[int]:
    """Return evenly spaced rounds, the first and the last among them."""
    if len(rounds) <= _MOST_ROUNDS:
        return list(rounds)
    last = len(rounds) - 1
    return [rounds[round(place * last / (_MOST_ROUNDS - 1))] for place in range(_MOST_ROUNDS)]
