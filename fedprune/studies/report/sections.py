"""What stands in the sections of a page, as the template takes it: texts, tables, and names of plots.

A function that has plots puts them into ``plots``, by the names that the template and the script know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedprune.results.folder import versions_of
from fedprune.scenario import yaml_file
from fedprune.studies.outcomes import Metric, Outcome
from fedprune.studies.report import figures, tables
from fedprune.studies.report.looks import Look
from fedprune.studies.report.settings import of_group, seeds_text
from fedprune.studies.statistics import COSTS, Group, GroupSummary, pareto_fronts, quantities

#: Costs that have a plot: wall time says more of the machine than of the method.
_PLOTTED = tuple(cost for cost in COSTS if cost != "wall_seconds")
#: Costs that are known by class of device.
_OF_CLASSES = ("device_seconds", "flops", "bytes_up", "bytes_down", "peak_memory_bytes", "joules")

Plots = dict[str, figures.Plot]


def contents(groups: int) -> list[tuple[str, str]]:
    """Return the anchors and titles of the page's sections."""
    entries = [
        ("claims", "Results"),
        ("filter", "Filter"),
        ("curves", "Over the rounds"),
        ("pareto", "Against costs"),
        ("density", "Density"),
        ("devices", "Devices"),
        ("clients", "Clients"),
        ("settings", "Settings"),
        ("cautions", "Warnings"),
        ("reproduce", "Reproduce"),
    ]
    return [entry for entry in entries if groups > 1 or entry[0] != "filter"]


def lead(outcomes: Sequence[Outcome], members: Sequence[Group]) -> str:
    """Return in one line how many runs there are, how many are complete, and their seeds."""
    complete = sum(outcome.complete for outcome in outcomes)
    seeds = sorted({outcome.seed for outcome in outcomes})
    runs = "1 run" if len(outcomes) == 1 else f"{len(outcomes)} runs"
    groups = f" in {len(members)} groups" if 1 < len(members) < len(outcomes) else ""
    ended = "" if complete == len(outcomes) else f", {complete} of {len(outcomes)} complete"
    return f"{runs}{groups}{ended}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."


def curves_note(outcomes: Sequence[Outcome], metric: Metric) -> str:
    """Return what to know of the curves: which way is better, what the bands are, what is left out."""
    better = "Higher" if metric.higher_is_better else "Lower"
    note = f"{better} is better."
    if len(outcomes) > len({outcome.group for outcome in outcomes}):
        note += " The mean over seeds, and the band of its 95 % t interval."
    if any(len(outcome.rounds) > figures.MOST_POINTS for outcome in outcomes):
        note += f" Of long runs about {figures.MOST_POINTS} evenly spaced rounds are drawn."
    return note


def variants(looks: Sequence[Look]) -> list[dict[str, Any]]:
    """Return the variants with what draws them: the marker too where they have no grid."""
    first: dict[str, Look] = {}
    for look in looks:
        first.setdefault(look.group.variant, look)
    plain = len(first) == len(looks)
    return [
        {
            "name": name,
            "swatch": {
                "colour": look.colour,
                "dash": look.dash if plain else "solid",
                "symbol": look.symbol if plain else None,
            },
        }
        for name, look in first.items()
    ]


def pareto(
    looks: Sequence[Look],
    summaries: Sequence[GroupSummary],
    metric: Metric,
    plots: Plots,
) -> list[dict[str, Any]]:
    """Return a plot for each known cost, with its table."""
    made, words = [], tables.metric_words(metric)
    known = {quantity.key: quantity for quantity in quantities(metric)}
    for key, front in pareto_fronts(summaries, metric).items():
        if key not in _PLOTTED:
            continue
        cost, name = known[key], f"pareto-{key.replace('_', '-')}"
        plots[name] = figures.pareto(looks, summaries, metric, cost, front)
        made.append(
            {
                "id": name,
                "title": cost.label[0].upper() + cost.label[1:],
                "text": f"Scatter plot of {words} against {cost.label}; on the front: {'; '.join(front)}.",
                "table": tables.pareto_part(summaries, metric, cost, front),
            }
        )
    return made


def layers(looks: Sequence[Look], plots: Plots) -> dict[str, Any] | None:
    """Return the groups whose layers have a plot; None where no layer is pruned."""
    options = []
    for look in looks:
        traces = figures.layer_traces(look)
        if traces:
            name = f"layers-{look.number}"
            plots[name] = {"data": traces, "layout": figures.layers_layout(traces)}
            options.append({"id": name, "group": look.number, "name": look.name})
    if not options:
        return None
    return {
        "options": options,
        "text": "Line plot of the density of each layer over the rounds, of the group that is chosen.",
    }


def classes(
    looks: Sequence[Look],
    summaries: Sequence[GroupSummary],
    metric: Metric,
    plots: Plots,
) -> dict[str, Any] | None:
    """Return the costs that have a plot by class of device, and the table; None without classes."""
    means = tables.class_means(summaries)
    part = tables.classes_part(means)
    if part is None:
        return None
    options = []
    known = {quantity.key: quantity for quantity in quantities(metric)}
    for key in _OF_CLASSES:
        values = {
            group: {name: of[key] for name, of in classes.items() if of.get(key) is not None}
            for group, classes in means.items()
        }
        if any(value > 0 for of in values.values() for value in of.values()):
            name = f"classes-{key.replace('_', '-')}"
            plots[name] = figures.class_bars(looks, known[key], values)
            options.append({"id": name, "name": known[key].label})
    return {
        "options": options,
        "text": "Bar chart of a cost by class of device, a bar a group.",
        "table": part,
    }


def base_of(outcomes: Sequence[Outcome], base: Mapping[str, Any] | None) -> dict[str, str]:
    """Return what the base is called, and all its settings as YAML; without a base the first run's."""
    if base is not None:
        return {"name": "the base", "text": yaml_file.write(dict(base))}
    first = outcomes[0]
    return {"name": f"{first.group}, seed {first.seed}", "text": yaml_file.write(dict(first.document))}


def settings(
    groups: Sequence[Group], outcomes: Sequence[Outcome], base: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the differences of every group, those that all have first and once."""
    document = outcomes[0].document if base is None else base
    found = [(group.name, *each) for group in groups for each in of_group(group, document)]
    shared = [each for each in found[0][2] if len(found) > 1 and all(each in own for *_, own in found)]
    entries = [("all groups", "all", shared)] if shared else []
    entries += [(name, seeds, [each for each in own if each not in shared]) for name, seeds, own in found]
    return [{"name": name, "seeds": seeds, "differences": own} for name, seeds, own in entries]


def versions_that_made(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the versions that made the runs, as their folders have them; one entry if all have the same."""
    found: dict[tuple[tuple[str, str], ...], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.directory is not None:
            versions = tuple(versions_of(outcome.directory).items())
            if versions:
                found.setdefault(versions, []).append(outcome)
    return [
        {"whose": _whose(made) if len(found) > 1 else None, "versions": dict(versions)}
        for versions, made in found.items()
    ]


def cautions_of_versions(versions: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what to warn of where runs were made by different versions."""
    names = dict.fromkeys(name for each in versions for name in each["versions"])
    differ = [name for name in names if len({each["versions"].get(name) for each in versions}) > 1]
    return [f"The runs were made by different versions of {', '.join(differ)}."] if differ else []


def _whose(outcomes: Sequence[Outcome]) -> str:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.group, []).append(outcome)
    return "; ".join(f"{name}, {seeds_text(of)}" for name, of in groups.items())
