"""The plots of a report, as plain data that plotly.js draws: traces and a layout.

What draws is `plotly <https://plotly.com/python/>`_; that a plot is valid there, a test holds. The page's
script adds what depends on the reader: the theme, the width, and which groups are shown. Each trace says in
``meta.group`` whose it is, and all text that a user may have written is escaped, since plotly takes tags.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedprune.results.figures import scale
from fedprune.studies.outcomes import Metric
from fedprune.studies.report.looks import SYMBOLS, Look
from fedprune.studies.statistics import Estimate, GroupSummary, Quantity, is_share, quantities

Plot = dict[str, Any]
Trace = dict[str, Any]
Points = list[tuple[int, float]]

#: More points no curve shows; what is left out lies on a straight line, or is every other point.
MOST_POINTS = 250
#: Layers from the first to the last: viridis, with an end that is readable on white.
_LAYERS = ("#482878", "#3E4A89", "#31688E", "#26828E", "#1F9E89", "#35B779", "#7FA82E", "#B08A00")
_MOST_MARKERS = 16
_FEW_ROUNDS = 10
_DIGITS = 5
_ALPHA = "24"  # Of a band, in hexadecimal.
_EDGE = 0.02  # Beyond 0 and 1, so that a marker there is not cut.
_WIDE = 8
_END = "<extra></extra>"  # Without the trace's name a second time, beside the box.
_PATTERNS = {"solid": "", "dash": "/", "dot": ".", "dashdot": "x", "longdash": "-", "longdashdot": "+"}
#: The units of costs, as `fedprune.results.figures.scale` knows them.
_SCALES = {
    "bytes": "bytes",
    "bytes_up": "bytes",
    "bytes_down": "bytes",
    "peak_memory_bytes": "bytes",
    "flops": "flops",
    "device_seconds": "seconds",
    "joules": "joules",
}


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """Return a curve with fewer points: none within a straight stretch, and at most so many.

    What lies on the line from one kept point to the next changes nothing. Where more than ``most`` are left,
    every k-th and the last stay.
    """
    kept: Points = []
    for place, point in enumerate(points):
        inside = 0 < place < len(points) - 1
        if not inside or not _on_line(kept[-1], point, points[place + 1]):
            kept.append(point)
    if len(kept) <= most:
        return kept
    step = math.ceil((len(kept) - 1) / (most - 1))
    return kept[:-1:step] + kept[-1:]


def headline_curves(looks: Sequence[Look], metric: Metric) -> Plot:
    """Return the headline metric over the rounds: the mean over seeds, and the band of its 95 % t interval.

    A round counts the seeds that were evaluated in it; of one seed there is no band.
    """
    bands: list[Trace] = []
    lines: list[Trace] = []
    values: list[float] = []
    value = f"%{{y{_form(metric)}}}"
    for look in looks:
        estimates = over_rounds(look, metric.name)
        values += (end for each in estimates.values() for end in (each.values[0], each.values[-1]))
        bands += _band(look, estimates)
        kept = [number for number, _ in thinned([(n, each.mean) for n, each in estimates.items()])]
        lines.append(
            {
                "type": "scatter",
                "name": _plain(look.name),
                "mode": "lines+markers",
                "x": kept,
                "y": [_round(estimates[n].mean) for n in kept],
                "line": {"color": look.colour, "dash": look.dash, "width": 2},
                "marker": _markers(look.colour, look.symbol),
                "customdata": [_interval_note(estimates[n], metric) for n in kept],
                "hovertemplate": f"%{{fullData.name}}<br>round %{{x}}: {value}%{{customdata}}{_END}",
                "meta": {"group": look.number},
            }
        )
    # Bands below, so that none hides a line.
    layout = {"xaxis": _rounds_axis(lines), "yaxis": _metric_axis(metric, values)}
    return {"data": bands + lines, "layout": layout}


def pareto(
    looks: Sequence[Look],
    summaries: Sequence[GroupSummary],
    metric: Metric,
    cost: Quantity,
    front: Sequence[str],
) -> Plot:
    """Return the headline metric against a cost: each run small, each group's mean large, and the front.

    ``front`` has the names of the groups that no other beats in both, the cheapest first.
    """
    estimates = {
        each.name: (each.estimates[cost.key], each.estimates[metric.final])
        for each in summaries
        if {metric.final, cost.key} <= each.estimates.keys()
    }
    spent = [value for costs, _ in estimates.values() for value in costs.values]
    reached = [value for _, values in estimates.values() for value in values.values]
    factor, axis = _cost_axis(cost, spent)
    means = {name: (_round(x.mean / factor), _round(y.mean)) for name, (x, y) in estimates.items()}
    traces = _front([means[name] for name in front if name in means])
    hover = f"{_label(metric)}: %{{y{_form(metric)}}}<br>{_plain(cost.label)}: %{{customdata[1]}}{_END}"
    for look in looks:
        if look.name not in estimates:
            continue
        costs, values = estimates[look.name]
        shared = {
            "type": "scatter",
            "mode": "markers",
            "name": _plain(look.name),
            "hovertemplate": f"%{{fullData.name}}, %{{customdata[0]}}<br>{hover}",
            "meta": {"group": look.number},
        }
        runs = _runs(look, metric, cost)
        if len(runs) > 1:
            traces.append(
                shared
                | {
                    "x": [_round(spend / factor) for _, spend, _ in runs],
                    "y": [_round(value) for *_, value in runs],
                    "marker": {"color": look.colour, "symbol": look.symbol, "size": 6, "opacity": 0.5},
                    "customdata": [[f"seed {seed}", cost.form(spend)] for seed, spend, _ in runs],
                }
            )
        seeds = f"seed {runs[0][0]}" if len(runs) == 1 else f"mean of {values.n} seeds"
        traces.append(
            shared
            | {
                "x": [means[look.name][0]],
                "y": [means[look.name][1]],
                "marker": {"color": look.colour, "symbol": look.symbol, "size": 12, "line": {"width": 1.5}},
                "error_y": _error(values) | {"color": look.colour},
                "customdata": [[seeds, cost.form(costs.mean)]],
            }
        )
    return {"data": traces, "layout": {"xaxis": axis, "yaxis": _metric_axis(metric, reached)}}


def layer_traces(look: Look) -> list[Trace]:
    """Return the density of each layer over the rounds, and of the whole; the mean over complete seeds.

    [] where no layer is pruned.
    """
    curves = layer_curves(look)
    if not curves:
        return []
    whole = [(n, each.mean) for n, each in over_rounds(look, "density").items()]
    traces = [
        _density_trace("all prunable weights", whole, {"color": "#000000", "width": 4, "dash": "solid"}, None)
    ]
    for place, (name, points) in enumerate(curves.items()):
        shade = _LAYERS[round(place * (len(_LAYERS) - 1) / max(1, len(curves) - 1))]
        line = {"color": shade, "width": 1.5, "dash": ("solid", "dash", "dot")[place % 3]}
        traces.append(_density_trace(_plain(name), points, line, SYMBOLS[place % len(SYMBOLS)]))
    return traces


def layers_layout(curves: Sequence[Trace]) -> Plot:
    """Return the layout of a plot of densities: logarithmic where they span more than a factor of ten."""
    values = [value for trace in curves for value in trace["y"] if value > 0]
    wide = bool(values) and max(values) > 10 * min(values)
    axis = {"title": {"text": "density: kept share of weights"}, "tickformat": "~%"}
    return {
        "xaxis": _rounds_axis(curves),
        "yaxis": axis | ({"type": "log"} if wide else {"rangemode": "tozero"}),
    }


def class_bars(looks: Sequence[Look], cost: Quantity, totals: Mapping[str, Mapping[str, float]]) -> Plot:
    """Return what each class of devices spent, by group, in their order.

    ``totals`` has means by the group's name and the class's.
    """
    classes = list(dict.fromkeys(name for of in totals.values() for name in of))
    largest = max((value for of in totals.values() for value in of.values()), default=0.0)
    factor, unit = scale(_SCALES[cost.key], largest)
    traces: list[Trace] = []
    for look in looks:
        of = totals.get(look.name) or {}
        known = [name for name in classes if name in of]
        pattern = {"shape": _PATTERNS[look.dash], "fillmode": "overlay", "fgcolor": "#FFFFFF", "size": 6}
        traces.append(
            {
                "type": "bar",
                "name": _plain(look.name),
                "x": [_plain(name) for name in known],
                "y": [_round(of[name] / factor) for name in known],
                "marker": {"color": look.colour, "pattern": pattern},
                "customdata": [cost.form(of[name]) for name in known],
                "hovertemplate": f"%{{fullData.name}}<br>%{{x}}: %{{customdata}}{_END}",
                "meta": {"group": look.number},
            }
        )
    axis = {"title": {"text": f"{_plain(cost.label)} ({unit})"}, "rangemode": "tozero"}
    return {"data": traces, "layout": {"xaxis": {"type": "category"}, "yaxis": axis, "barmode": "group"}}


def over_rounds(look: Look, column: str) -> dict[int, Estimate]:
    """Return the estimate over seeds of a column of ``rounds.jsonl``, by round.

    All runs of a group count that have the round, also those that are not complete.
    """
    values: dict[int, list[float]] = {}
    for outcome in look.group.outcomes:
        for record in outcome.rounds:
            if record.get(column) is not None:
                values.setdefault(record["round"], []).append(record[column])
    return {number: Estimate.of(values[number]) for number in sorted(values)}


def layer_curves(look: Look) -> dict[str, Points]:
    """Return the density of each pruned layer over the rounds, the mean over a group's runs, not thinned."""
    layers: dict[str, dict[int, list[float]]] = {}
    for outcome in look.group.outcomes:
        for record in outcome.rounds:
            for name, density in (record.get("layer_densities") or {}).items():
                layers.setdefault(name, {}).setdefault(record["round"], []).append(density)
    return {
        name: [(number, math.fsum(of) / len(of)) for number, of in sorted(rounds.items())]
        for name, rounds in layers.items()
    }


def _band(look: Look, estimates: Mapping[int, Estimate]) -> list[Trace]:
    """Return the area between the ends of the intervals; [] where there are none."""
    found = [(n, ends) for n, each in estimates.items() if (ends := each.t_interval) is not None]
    kept = found if len(found) <= MOST_POINTS else _every(found)
    if not kept:
        return []
    rounds = [n for n, _ in kept]
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "x": rounds + rounds[::-1],
            "y": [_round(ends.high) for _, ends in kept] + [_round(ends.low) for _, ends in kept[::-1]],
            "fill": "toself",
            "fillcolor": look.colour + _ALPHA,
            "line": {"width": 0, "color": look.colour},
            "hoverinfo": "skip",
            "meta": {"group": look.number},
        }
    ]


def _front(points: Sequence[tuple[float, float]]) -> list[Trace]:
    if len(points) < 2:
        return []
    line = {"color": "#808080", "dash": "dot", "width": 1.5}
    x, y = zip(*points, strict=True)
    return [
        {"type": "scatter", "mode": "lines", "x": list(x), "y": list(y), "line": line, "hoverinfo": "skip"}
    ]


def _runs(look: Look, metric: Metric, cost: Quantity) -> list[tuple[int, float, float]]:
    """Return (seed, cost, final value) of the complete runs of a group that have both."""
    final = next(quantity for quantity in quantities(metric) if quantity.key == metric.final)
    found = ((run.seed, cost.of(run), final.of(run)) for run in look.group.complete)
    return [(seed, x, y) for seed, x, y in found if x is not None and y is not None]


def _density_trace(name: str, points: Points, line: dict[str, Any], symbol: str | None) -> Trace:
    kept = thinned(points)
    return {
        "type": "scatter",
        "mode": "lines" if symbol is None else "lines+markers",
        "name": name,
        "x": [n for n, _ in kept],
        "y": [_round(value) for _, value in kept],
        "line": line,
        **({} if symbol is None else {"marker": _markers(line["color"], symbol)}),
        "hovertemplate": "%{fullData.name}<br>round %{x}: %{y:.3~%}" + _END,
    }


def _markers(colour: str, symbol: str) -> dict[str, Any]:
    return {"color": colour, "symbol": symbol, "size": 6, "maxdisplayed": _MOST_MARKERS}


def _interval_note(estimate: Estimate, metric: Metric) -> str:
    if estimate.t_interval is None:
        return ", one seed"
    low, high = estimate.t_interval
    ends = f"{low * 100:.1f} to {high * 100:.1f}%" if is_share(metric.name) else f"{low:.4g} to {high:.4g}"
    return f"<br>95 % interval {ends}, {estimate.n} seeds"


def _error(estimate: Estimate) -> dict[str, Any]:
    if not estimate.half_width:
        return {"visible": False}
    return {"type": "data", "array": [_round(estimate.half_width)], "thickness": 1.2, "width": 4}


def _metric_axis(metric: Metric, values: Sequence[float]) -> dict[str, Any]:
    """Return the axis of the headline metric, on which wide intervals leave room for the values.

    The interval of two seeds may be many times as wide as all values together, and leave [0, 1]. The
    axis then ends before the interval does.
    """
    axis: dict[str, Any] = {"title": {"text": _label(metric)}}
    if values:
        low, high = min(values), max(values)
        room = (high - low) or abs(high) or 1.0
        low, high = low - room, high + room
        if is_share(metric.name):
            low, high = max(low, -_EDGE), min(high, 1 + _EDGE)
        axis["autorangeoptions"] = {"clipmin": _round(low), "clipmax": _round(high)}
    return axis | ({"tickformat": "~%"} if is_share(metric.name) else {})


def _cost_axis(cost: Quantity, spent: Sequence[float]) -> tuple[float, dict[str, Any]]:
    """Return the factor of a cost's unit, and its axis: logarithmic where values differ enough."""
    least, most = min(spent, default=0.0), max(spent, default=0.0)
    wide = least > 0 and most > _WIDE * least
    factor, unit = scale(_SCALES[cost.key], math.sqrt(least * most) if wide else most)
    axis: dict[str, Any] = {"title": {"text": f"{_plain(cost.label)} ({unit})"}}
    if wide:
        margin = (most / least) ** 0.06
        low, high = least / factor / margin, most / factor * margin
        steps = (1, 2, 5) if high < 50 * low else (1, 3) if high < 1000 * low else (1,)
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [value for n in decades for step in steps if low <= (value := step * 10.0**n) <= high]
        axis |= {"type": "log", "range": [_round(math.log10(low)), _round(math.log10(high))]}
        axis |= {"tickvals": ticks, "ticktext": [f"{value:g}" for value in ticks]}
    return factor, axis


def _rounds_axis(traces: Iterable[Trace]) -> dict[str, Any]:
    """Return the axis of rounds, with ticks at whole numbers also where there are few."""
    last = max((number for trace in traces for number in trace["x"]), default=0)
    return {"title": {"text": "round"}, "tickformat": "d"} | ({"dtick": 1} if last <= _FEW_ROUNDS else {})


def _form(metric: Metric) -> str:
    return ":.2%" if is_share(metric.name) else ":.4g"


def _label(metric: Metric) -> str:
    return _plain(metric.name.replace("_", " "))


def _plain(text: str) -> str:
    """Return a text as plotly has to be given it, which takes some tags and entities."""
    return html.escape(text, quote=False)


def _every(banded: list[Any]) -> list[Any]:
    step = math.ceil((len(banded) - 1) / (MOST_POINTS - 1))
    return banded[:-1:step] + banded[-1:]


def _on_line(before: tuple[int, float], point: tuple[int, float], after: tuple[int, float]) -> bool:
    share = (point[0] - before[0]) / (after[0] - before[0])
    expected = before[1] + share * (after[1] - before[1])
    return math.isclose(point[1], expected, rel_tol=1e-6, abs_tol=1e-9)


def _round(value: float) -> float:
    """Return a number with as many digits as a plot can show; whole numbers without a point."""
    short = float(f"{value:.{_DIGITS}g}")
    return int(short) if short.is_integer() else short
