"""The report of some runs: one HTML page that holds everything it needs, and loads nothing.

It puts together what the other modules of the package make, and what `fedprune.studies.statistics` says. It
knows no study file: whoever runs a study calls `write_report` with its outcomes. The same outcomes give the
same bytes; no time is in the page but what the records have.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import fedprune
from fedprune.errors import UserError
from fedprune.results.folder import versions_of
from fedprune.results.records import write_atomically
from fedprune.scenario import yaml_file
from fedprune.studies.outcomes import Metric, Outcome, headline
from fedprune.studies.report import figures, tables
from fedprune.studies.report.cautions import cautions
from fedprune.studies.report.looks import Look, grid_of, looks_of
from fedprune.studies.report.settings import of_group, seeds_text
from fedprune.studies.statistics import (
    COSTS,
    Group,
    GroupSummary,
    pareto_fronts,
    quantities,
    summarise_groups,
)
from fedprune.studies.table import claim_table, client_table, seed_table

#: Costs that have a plot; both directions of the traffic besides their sum would repeat it.
_PLOTTED = tuple(cost for cost in COSTS if cost != "wall_seconds")
_OF_CLASSES = ("device_seconds", "flops", "bytes_up", "bytes_down", "peak_memory_bytes", "joules")


def write_report(
    outcomes: Sequence[Outcome],
    path: str | Path,
    *,
    title: str,
    reference: str | None = None,
    target: float | None = None,
    base: Mapping[str, Any] | None = None,
    command: str | None = None,
    refresh: int | None = None,
    progress: str | None = None,
) -> Path:
    """Write the report of some runs as one HTML page.

    Parameters
    ----------
    outcomes
        The runs, also those that have not ended or not begun; at least one.
    path
        The page. Its folder is made; a page that is there is replaced in one step.
    title
        Its heading.
    reference
        The variant that the others are compared with; None compares with none.
    target
        The value of the headline metric for "cost until"; None leaves that table out.
    base
        The scenario that settings are shown as a difference to, resolved as those of the runs are; None
        takes that of the first run.
    command
        What makes the runs and this page again, shown as it is.
    refresh
        Seconds after which the page loads itself again; None for a page that stays as it is.
    progress
        How far the runs are, in words.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    UserError
        Where there is no run, runs have different headline metrics, no run is called ``reference``, or the
        page cannot be written.
    """
    path = Path(path)
    text = page(
        outcomes,
        title=title,
        reference=reference,
        target=target,
        base=base,
        command=command,
        refresh=refresh,
        progress=progress,
    )
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return path


def page(
    outcomes: Sequence[Outcome],
    *,
    title: str,
    reference: str | None = None,
    target: float | None = None,
    base: Mapping[str, Any] | None = None,
    command: str | None = None,
    refresh: int | None = None,
    progress: str | None = None,
) -> str:
    """Return the text of the page that `write_report` writes."""
    if not outcomes:
        raise UserError("there is no run to report on")
    claim = claim_table(outcomes, reference=reference, target=target)
    metric, summaries = headline(outcomes), summarise_groups(outcomes)
    groups = [each.group for each in summaries]
    looks, versions = looks_of(groups), _versions(outcomes)
    plots: dict[str, figures.Plot] = {"curves": figures.headline_curves(looks, metric)}
    context: dict[str, Any] = {
        "title": title,
        "lead": _lead(outcomes, groups),
        "refresh": refresh,
        "progress": progress,
        "contents": _contents(len(groups)),
        "metric_name": tables.metric_words(metric),
        "claim": claim,
        "marked": {group.name for group in groups if group.variant == reference},
        "runs": seed_table(outcomes),
        "variants": _variants(looks),
        "grid": grid_of(looks),
        "groups": groups,
        "curves": {
            "note": _curves_note(outcomes, metric),
            "text": f"Line plot of {tables.metric_words(metric)} over the rounds, a line a group.",
            "table": tables.rounds_part(looks, metric),
        },
        "pareto": _pareto(looks, summaries, metric, plots),
        "layers": _layers(looks, plots),
        "classes": _classes(looks, summaries, metric, plots),
        "clients": client_table(outcomes),
        "base": _base(outcomes, base),
        "settings": _settings(groups, outcomes, base),
        "cautions": [*cautions(groups, metric), *_of_versions(versions)],
        "command": command,
        "versions": versions,
        "version": fedprune.__version__,
    }
    return _rendered(context | {"data": _packed(_data(looks, plots))})


def _data(looks: Sequence[Look], plots: Mapping[str, figures.Plot]) -> str:
    """Return what the page's script draws, as JSON."""
    groups = [
        {
            "name": look.name,
            "variant": look.group.variant,
            "values": look.values,
            "colour": look.colour,
            "dash": look.dash,
            "symbol": look.symbol,
        }
        for look in looks
    ]
    return json.dumps({"groups": groups, "plots": plots}, separators=(",", ":"), allow_nan=False)


def _rendered(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader("fedprune.studies.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    folder = files("fedprune.studies.report") / "template"
    own = {name: Markup((folder / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    return environment.get_template("page.html.j2").render(
        context, style=own["css"], script=own["js"], plotly=_packed(get_plotlyjs())
    )


def _packed(text: str) -> str:
    """Return a text gzipped and in base64: safe within HTML, and plotly.js is 2 MB in place of 4.8."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _contents(groups: int) -> list[tuple[str, str]]:
    contents = [
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
    return [entry for entry in contents if groups > 1 or entry[0] != "filter"]


def _lead(outcomes: Sequence[Outcome], members: Sequence[Group]) -> str:
    complete = sum(outcome.complete for outcome in outcomes)
    seeds = sorted({outcome.seed for outcome in outcomes})
    runs = "1 run" if len(outcomes) == 1 else f"{len(outcomes)} runs"
    groups = f" in {len(members)} groups" if 1 < len(members) < len(outcomes) else ""
    ended = "" if complete == len(outcomes) else f", {complete} of {len(outcomes)} complete"
    return f"{runs}{groups}{ended}; {'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}."


def _curves_note(outcomes: Sequence[Outcome], metric: Metric) -> str:
    better = "Higher" if metric.higher_is_better else "Lower"
    note = f"{better} is better."
    if len(outcomes) > len({outcome.group for outcome in outcomes}):
        note += " The mean over seeds, and the band of its 95 % t interval."
    if any(len(outcome.rounds) > figures.MOST_POINTS for outcome in outcomes):
        note += f" Of long runs about {figures.MOST_POINTS} evenly spaced rounds are drawn."
    return note


def _variants(looks: Sequence[Look]) -> list[dict[str, Any]]:
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


def _pareto(
    looks: Sequence[Look],
    summaries: Sequence[GroupSummary],
    metric: Metric,
    plots: dict[str, figures.Plot],
) -> list[dict[str, Any]]:
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


def _layers(looks: Sequence[Look], plots: dict[str, figures.Plot]) -> dict[str, Any] | None:
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


def _classes(
    looks: Sequence[Look],
    summaries: Sequence[GroupSummary],
    metric: Metric,
    plots: dict[str, figures.Plot],
) -> dict[str, Any] | None:
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


def _base(outcomes: Sequence[Outcome], base: Mapping[str, Any] | None) -> dict[str, str]:
    if base is not None:
        return {"name": "the base", "text": yaml_file.write(dict(base))}
    first = outcomes[0]
    return {"name": f"{first.group}, seed {first.seed}", "text": yaml_file.write(dict(first.document))}


def _settings(
    groups: Sequence[Group], outcomes: Sequence[Outcome], base: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return the differences of every group, those that all have first and once."""
    document = outcomes[0].document if base is None else base
    found = [(group.name, *each) for group in groups for each in of_group(group, document)]
    shared = (
        [each for each in found[0][2] if all(each in own for _, _, own in found)] if len(found) > 1 else []
    )
    entries = [("all groups", "all", shared)] if shared else []
    entries += [(name, seeds, [each for each in own if each not in shared]) for name, seeds, own in found]
    return [{"name": name, "seeds": seeds, "differences": own} for name, seeds, own in entries]


def _versions(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
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


def _of_versions(versions: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for each in versions for name in each["versions"])
    differ = [name for name in names if len({each["versions"].get(name) for each in versions}) > 1]
    return [f"The runs were made by different versions of {', '.join(differ)}."] if differ else []


def _whose(outcomes: Sequence[Outcome]) -> str:
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.group, []).append(outcome)
    return "; ".join(f"{name}, {seeds_text(of)}" for name, of in groups.items())
