"""Figures of a study for a paper: one column wide, in colours and markers that all readers can tell apart.

`Study.plot` returns their axes; ``axes.figure.savefig("x.pdf")`` writes vectors. The page that one hovers
over is the matter of `fedprune.studies.report`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from matplotlib import rc_context
from matplotlib.ticker import MaxNLocator

from fedprune.errors import UserError
from fedprune.results.figures import COLOURS, PERCENT, RunFigure, log_axis, scale
from fedprune.studies.outcomes import Metric, Outcome, headline
from fedprune.studies.statistics import (
    Estimate,
    Group,
    group_outcomes,
    is_share,
    pareto_front,
    summarise_groups,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIGURES = ("curves", "costs", "spent")
#: Width of a column of a paper in two columns, in inches, and the size of its letters in points.
COLUMN = 3.35
#: Height of the axes with their labels, and of a line of the legend, in inches.
_HEIGHT, _LEGEND_LINE = 2.1, 0.18
_STYLE: Any = {
    "font.size": 8.0,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.5,
}
_MARKERS = "osD^vPX*"
_LINES = ("-", "--", "-.", ":")
#: What a cost is measured in, and what its axis is called.
COSTS = {
    "bytes": ("bytes", "traffic, up and down"),
    "bytes_up": ("bytes", "bytes up"),
    "bytes_down": ("bytes", "bytes down"),
    "flops": ("flops", "computation"),
    "device_seconds": ("seconds", "device time"),
    "peak_memory_bytes": ("bytes", "peak memory"),
    "joules": ("joules", "energy"),
}


#: What rounds add up to: keys of `COSTS`, and the columns of a round that are added.
_SPENT = {
    "bytes": ("bytes_up", "bytes_down"),
    "bytes_up": ("bytes_up",),
    "bytes_down": ("bytes_down",),
    "flops": ("flops",),
    "device_seconds": ("device_seconds",),
    "joules": ("joules",),
}


def curves(outcomes: Sequence[Outcome], axes: Axes | None = None, *, personal: bool = False) -> Axes:
    """Draw the headline metric over the rounds: the mean over seeds, and its 95 % t interval as a band.

    Parameters
    ----------
    outcomes
        All runs; those that are complete are drawn.
    axes : Axes, optional
        Where to draw; a new figure, one column wide, where not given.
    personal
        Draw the metric of the clients' own models in place of the global model's.
    """
    metric = _metric(outcomes, personal)
    with rc_context(_STYLE):
        axes = _axes(axes)
        for place, group in enumerate(_drawn(outcomes)):
            points = _over_rounds(group, metric)
            rounds = [number for number, _ in points]
            colour, style = _line(place)
            axes.plot(rounds, [each.mean for _, each in points], style, color=colour, label=group.name)
            bands = [(number, each.t_interval) for number, each in points]
            known = [(number, *band) for number, band in bands if band is not None]
            if known:
                numbers, lows, highs = zip(*known, strict=True)
                axes.fill_between(numbers, lows, highs, color=colour, alpha=0.18, lw=0)
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        _metric_axis(axes, metric)
        _legend(axes)
    return axes


def spent(
    outcomes: Sequence[Outcome], cost: str = "bytes", axes: Axes | None = None, *, personal: bool = False
) -> Axes:
    """Draw the best headline metric so far against what was spent of a cost so far: means over seeds.

    Raises
    ------
    UserError
        For a cost that is none, or that rounds do not add up to, as peak memory.
    """
    if cost not in _SPENT:
        raise UserError(f"rounds do not add up to a cost {cost!r}; there are {', '.join(_SPENT)}")
    metric, (quantity, name) = _metric(outcomes, personal), COSTS[cost]
    found = {group.name: _so_far(group, metric, _SPENT[cost]) for group in _drawn(outcomes)}
    with rc_context(_STYLE):
        axes = _axes(axes)
        largest = max((points[-1][0] for points in found.values() if points), default=1.0)
        factor, unit = scale(quantity, largest)
        for place, (group, points) in enumerate(found.items()):
            colour, style = _line(place)
            costs_so_far = [x / factor for x, _ in points]
            axes.plot(costs_so_far, [best for _, best in points], style, color=colour, label=group)
        log_axis(axes, [x / factor for points in found.values() for x, _ in points])
        axes.set_xlabel(f"{name}, so far ({unit})")
        _metric_axis(axes, metric)
        axes.set_ylabel(f"best {axes.get_ylabel()}")
        _legend(axes)
    return axes


def costs(
    outcomes: Sequence[Outcome], cost: str = "bytes", axes: Axes | None = None, *, personal: bool = False
) -> Axes:
    """Draw the final headline metric against a cost, a point a group; a line joins those of the Pareto front.

    Bars are 95 % t intervals over seeds.

    Raises
    ------
    UserError
        For a cost that is none of `COSTS`.
    """
    if cost not in COSTS:
        raise UserError(f"there is no cost {cost!r}; there are {', '.join(COSTS)}")
    metric, (quantity, name) = _metric(outcomes, personal), COSTS[cost]
    summaries = [
        summary
        for summary in summarise_groups(outcomes)
        if cost in summary.estimates and metric.final in summary.estimates
    ]
    with rc_context(_STYLE):
        axes = _axes(axes)
        factor, unit = scale(quantity, max((each.estimates[cost].mean for each in summaries), default=1.0))
        points = {}
        for place, summary in enumerate(summaries):
            spent, reached = summary.estimates[cost], summary.estimates[metric.final]
            points[summary.name] = spent.mean / factor, reached.mean
            axes.errorbar(
                *points[summary.name],
                xerr=None if spent.half_width is None else spent.half_width / factor,
                yerr=reached.half_width,
                fmt=_MARKERS[place % len(_MARKERS)],
                color=COLOURS[place % len(COLOURS)],
                elinewidth=0.8,
                label=summary.name,
            )
        front = sorted(points[name] for name in pareto_front(summaries, metric, cost))
        axes.plot([x for x, _ in front], [y for _, y in front], color="#808080", lw=0.8, zorder=0)
        log_axis(axes, [spent for spent, _ in points.values()])
        axes.set_xlabel(f"{name} ({unit})")
        _metric_axis(axes, metric)
        _legend(axes)
    return axes


def _axes(axes: Axes | None) -> Axes:
    """Return the axes, of a new figure where there are none; `_legend` makes it as high as its names need."""
    if axes is None:
        axes = RunFigure(figsize=(COLUMN, _HEIGHT), layout="constrained").subplots()
    axes.grid(alpha=0.3, lw=0.4)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _metric(outcomes: Sequence[Outcome], personal: bool) -> Metric:
    """Return what is drawn: the headline metric, or that of the clients' own models.

    Raises
    ------
    UserError
        Where clients have no models of their own, or nothing to test them on.
    """
    metric = headline(outcomes)
    if not personal:
        return metric
    own = replace(metric, name=f"personal_{metric.name}")
    if all((outcome.summary or {}).get(own.final) is None for outcome in outcomes):
        raise UserError(f"no run has a {own.name}: clients test on what data.client_test_fraction holds out")
    return own


def _line(place: int) -> tuple[str, str]:
    """Return colour and style of the line at a place: all colours first, then the next style."""
    return COLOURS[place % len(COLOURS)], _LINES[place // len(COLOURS) % len(_LINES)]


def _so_far(group: Group, metric: Metric, columns: Sequence[str]) -> list[tuple[float, float]]:
    """Return what was spent up to each round and the best value up to it, both means over complete runs.

    It begins with round 1, or the first in which all were evaluated: on a logarithmic axis the few bytes of
    round 0 would take most of the width. They are counted.
    """
    better = max if metric.higher_is_better else min
    runs = []
    for outcome in group.complete:
        total, best, points = 0.0, None, {}
        for record in outcome.rounds:
            total += sum(record.get(column) or 0 for column in columns)
            value = record.get(metric.name)
            if value is not None:
                best = value if best is None else better(best, value)
            if best is not None and record["round"] > 0:
                points[record["round"]] = total, best
        runs.append(points)
    common = sorted(set.intersection(*map(set, runs)))
    return [(fmean(points[n][0] for points in runs), fmean(points[n][1] for points in runs)) for n in common]


def _drawn(outcomes: Sequence[Outcome]) -> list[Group]:
    return [group for group in group_outcomes(outcomes) if group.complete]


def _over_rounds(group: Group, metric: Metric) -> list[tuple[int, Estimate]]:
    """Return the estimate over the complete runs of a group for each round in which all were evaluated."""
    by_round: dict[int, list[float]] = {}
    for outcome in group.complete:
        for record in outcome.rounds:
            if record.get(metric.name) is not None:
                by_round.setdefault(record["round"], []).append(record[metric.name])
    whole = len(group.complete)
    return [(number, Estimate.of(found)) for number, found in sorted(by_round.items()) if len(found) == whole]


def _metric_axis(axes: Axes, metric: Metric) -> None:
    if is_share(metric.name):
        axes.yaxis.set_major_formatter(PERCENT)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -0.02), min(high, 1.02))  # No band leaves what a share can be.
    axes.set_ylabel(f"{metric.name.replace('_', ' ')}{' (%)' if is_share(metric.name) else ''}")


def _legend(axes: Axes) -> None:
    """Put the names below, in as many columns as fit."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = max(1, min(3, 44 // (max(map(len, labels)) + 6)))
        figure: Any = axes.figure
        if figure.get_size_inches()[1] == _HEIGHT:  # Ours, and not yet as high as it has to be.
            figure.set_figheight(_HEIGHT + _LEGEND_LINE * -(-len(labels) // columns) + 0.1)
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
