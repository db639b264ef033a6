"""The figures of one run, drawn from the records of its rounds.

Every function makes a `matplotlib.figure.Figure` of its own and touches no global state of
matplotlib, so figures can be drawn in any thread and beside a notebook's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from io import BytesIO
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedprune.results.measures import is_share, words
from fedprune.results.records import ACCURACY, Record, class_totals, metric_names

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_STEPS: dict[str, tuple[tuple[float, str], ...]] = {
    "bytes": ((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"), (2.0**40, "TiB")),
    "flops": ((1.0, "FLOP"), (1e6, "MFLOP"), (1e9, "GFLOP"), (1e12, "TFLOP"), (1e15, "PFLOP")),
    "seconds": ((1.0, "s"), (60.0, "min"), (3600.0, "h"), (86400.0, "d")),
    "joules": ((1e-3, "mJ"), (1.0, "J"), (1e3, "kJ"), (1e6, "MJ"), (1e9, "GJ")),
}
#: What became of a class's clients in a round, as `ClassRecord` counts it; no colours of classes.
_ATTENDANCE = {
    "ok": "#404040",
    "late": "#8C6D31",
    "failed": "#AD494A",
    "surplus": "#8CA252",
    "excluded": "#7B4173",
    "offline": "#9C9EDE",
}
_MOST_MARKERS = 30
_MOST_NAMES = 10
_MOST_LABELS = 60
_MOST_CELLS = 20
_DENSITY = "density: kept share of weights (%)"
#: Shares as percent, with as many digits as a tick needs.
PERCENT = FuncFormatter(lambda value, _: f"{value * 100:.4g}")
_DPI = 144


class RunFigure(Figure):
    """A figure that a notebook shows by itself."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def scale(quantity: str, largest: float) -> tuple[float, str]:
    """Return a quantity's largest unit not above ``largest``: its factor and its name."""
    steps = _STEPS[quantity]
    return max((step for step in steps if step[0] <= largest), default=steps[0])


def draw(
    rounds: Sequence[Record],
    directory: Path,
    *,
    title: str,
    metrics: Mapping[str, bool | None] = ACCURACY,
) -> None:
    """Write figures into the folder: metrics, costs, density, and of several classes of devices classes.

    Each as PNG and as PDF, under the same name.
    """
    for name, figure_of in figures_of(metrics).items():
        if name != "classes" or len(class_totals(rounds)) > 1:
            figure = figure_of(rounds, title)
            figure.savefig(directory / f"{name}.png", dpi=_DPI)
            # Without the time, so that the same run gives the same file.
            figure.savefig(directory / f"{name}.pdf", metadata={"CreationDate": None})


def figures_of(metrics: Mapping[str, bool | None]) -> dict[str, Draw]:
    """Return how each figure of a run is drawn, by its name.

    ``metrics`` has whether higher is better by the name of each metric, the headline first.
    """
    return {
        **{
            name: partial(metric_figure, metric=name, higher_is_better=higher)
            for name, higher in metrics.items()
        },
        **FIGURES,
    }


def metric_figure(
    rounds: Sequence[Record], title: str, *, metric: str, higher_is_better: bool | None = True
) -> RunFigure:
    """Draw a metric against rounds: the global model's, and (dashed) that of the clients' own models.

    The global model's is that on the server's test data and, where known, on the clients' data.
    Rounds without evaluation are left out.
    """
    figure, axes = _new(title, words(metric))
    points, of_clients, personal = (
        _known(rounds, column) for column in (metric, f"client_{metric}", f"personal_{metric}")
    )
    _metric_axis(axes, metric)
    _round_axis(axes, rounds)
    if not points and not of_clients and not personal:
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "no round was evaluated", transform=axes.transAxes, ha="center")
        return figure
    for line, label, colour, style in (
        (points, "global model, on the server's test data", COLOURS[0], "-"),
        (of_clients, "global model, on the clients' held-out data", COLOURS[3], "-"),
        (personal, "clients' own models, on their held-out data", COLOURS[4], "--"),
    ):
        if line:
            _line(axes, *zip(*line, strict=True), label=label, color=colour, linestyle=style)
    if points:
        best = min if higher_is_better is False else max
        _mark(axes, best(points, key=lambda point: point[1]), "best", marker="o", mec=COLOURS[1])
        _mark(axes, points[-1], "last", marker="s", mec=COLOURS[2])
    values = [value for _, value in points + of_clients + personal]
    if is_share(metric):
        space = max(0.02, 0.08 * (max(values) - min(values)))
        axes.set_ylim(max(0.0, min(values) - space), min(1.0 + space / 2, max(values) + space))
    _legend_below(figure, axes)
    return figure


def draw_confusion(
    rows: Sequence[Mapping[str, int]], names: Sequence[str], directory: Path, *, title: str
) -> None:
    """Write ``confusion_matrix`` into the folder, as PNG and as PDF; see `confusion_figure`."""
    figure = confusion_figure(rows, names, title)
    figure.savefig(directory / "confusion_matrix.png", dpi=_DPI)
    figure.savefig(directory / "confusion_matrix.pdf", metadata={"CreationDate": None})


def confusion_figure(rows: Sequence[Mapping[str, int]], names: Sequence[str], title: str) -> RunFigure:
    """Draw how each class was taken: of its examples, a row, the share taken for each class.

    Counts stand in the cells where there are few classes. Rows are those of ``metrics.json``.
    """
    counts = np.zeros((len(names), len(names)))
    for true, row in enumerate(rows):
        for taken, often in row.items():
            counts[true, int(taken)] = often
    there = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, there, out=np.zeros_like(counts), where=there > 0)
    side = min(12.0, max(4.8, 1.6 + 0.5 * len(names)))
    figure = RunFigure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{title}: confusion matrix, on the server's test data")
    drawn = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(drawn, ax=axes, format=PERCENT, label="share of the class (%)")
    few = len(names) <= _MOST_CELLS
    every = 1 if few else len(names) // _MOST_CELLS + 1
    places = range(0, len(names), every)
    axes.set_xticks(
        places, [names[place] for place in places], rotation=90 if max(map(len, names)) > 3 else 0
    )
    axes.set_yticks(places, [names[place] for place in places])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if few:
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{count:.0f}", ha="center", va="center", color=colour, fontsize="small")
    return figure


def costs_figure(rounds: Sequence[Record], title: str) -> RunFigure:
    """Draw what all clients together spent up to each round, and the largest peak memory in each."""
    figure = RunFigure(figsize=(9.6, 7.2), layout="constrained")
    figure.suptitle(f"{title}: costs")
    panels = figure.subplots(2, 2)
    traffic, flops, seconds, memory = panels.flat
    numbers = [record["round"] for record in rounds]

    down, up = _cumulative(rounds, "bytes_down"), _cumulative(rounds, "bytes_up")
    _cost(traffic, numbers, {"server to clients": down, "clients to server": up}, "bytes", "traffic so far")
    traffic.legend(frameon=False)
    _cost(flops, numbers, {"": _cumulative(rounds, "flops")}, "flops", "computation so far")
    _cost(seconds, numbers, {"": _cumulative(rounds, "device_seconds")}, "seconds", "device time so far")
    # Without the rounds in which no client had to compute anything.
    peaks = {
        record["round"]: float(record["peak_memory_bytes"])
        for record in rounds
        if record["peak_memory_bytes"]
    }
    _cost(memory, list(peaks), {"": list(peaks.values())}, "bytes", "largest client's peak")
    titles = ("Traffic", "Computation", "Device time", "Peak memory")
    for axes, panel_title in zip(panels.flat, titles, strict=True):
        axes.set_title(panel_title)
        _round_axis(axes, rounds)
    return figure


def density_figure(rounds: Sequence[Record], title: str) -> RunFigure:
    """Draw the kept share of the prunable weights, of the model and of each pruned tensor.

    Where no layer's density moves, one bar a layer. Where they do, lines over the rounds; of more than ten
    layers the model's line, and beside it bars of the layers, before and after.
    """
    recorded = [record["layer_densities"] for record in rounds if record.get("layer_densities")]
    layers = list(dict.fromkeys(name for densities in recorded for name in densities))
    if layers and not _moves(recorded):
        figure = RunFigure(figsize=(8.0, _height(len(layers))), layout="constrained")
        axes = figure.subplots()
        axes.set_title(f"{title}: density")
        _layer_bars(axes, layers, {"": recorded[-1]}, rounds[-1]["density"])
        figure.legend(loc="outside lower center", frameon=False)
        return figure
    if len(layers) <= _MOST_NAMES:
        figure, axes = _new(title, "density")
        _density_lines(axes, rounds, layers)
        if layers:
            figure.legend(loc="outside lower center", ncols=2 if len(layers) > 2 else 3, frameon=False)
        return figure
    figure = RunFigure(figsize=(11.0, max(4.8, _height(len(layers)))), layout="constrained")
    figure.suptitle(f"{title}: density")
    over_rounds, by_layer = figure.subplots(1, 2)
    _density_lines(over_rounds, rounds, [])
    over_rounds.set_title("all prunable weights")
    first, last = (next(r for r in way if r.get("layer_densities")) for way in (rounds, rounds[::-1]))
    bars = {f"round {record['round']}": record["layer_densities"] for record in (first, last)}
    _layer_bars(by_layer, layers, bars, rounds[-1]["density"])
    by_layer.set_title("by layer")
    figure.legend(*by_layer.get_legend_handles_labels(), loc="outside lower right", ncols=3, frameon=False)
    return figure


def _moves(recorded: Sequence[Record]) -> bool:
    """Say whether the density of a layer changes by more than a hundredth of itself."""
    layers = {name for densities in recorded for name in densities}
    values = [[densities.get(name, 1.0) for densities in recorded] for name in layers]
    return any(max(of_layer) - min(of_layer) > 0.01 * max(of_layer) for of_layer in values)


def _height(layers: int) -> float:
    return min(16.0, 1.7 + 0.32 * layers)


def _layer_bars(axes: Axes, layers: Sequence[str], bars: dict[str, Record], whole: float) -> None:
    """Draw the layers' densities as bars from the top down, side by side for several rounds."""
    thickness = 0.8 / len(bars)
    for place, (label, densities) in enumerate(bars.items()):
        heights = [number + (place - (len(bars) - 1) / 2) * thickness for number in range(len(layers))]
        values = [densities.get(name, 1.0) for name in layers]
        colour = COLOURS[0] if place == len(bars) - 1 else "#B0B0B0"
        drawn = axes.barh(heights, values, height=thickness * 0.94, color=colour, label=label or None)
        if len(layers) <= _MOST_LABELS:
            texts = [f"{value * 100:.3g}" for value in values]
            size = "small" if len(bars) == 1 else "x-small"
            # On white, since the line of the whole model may run through them.
            white = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
            axes.bar_label(drawn, texts, padding=5, fontsize=size, bbox=white)
    axes.axvline(whole, color="black", ls="--", lw=1.2, label=f"all prunable weights: {whole * 100:.3g} %")
    step = -(-len(layers) // _MOST_LABELS)
    axes.set_yticks(range(0, len(layers), step), layers[::step], fontsize="small")
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, max(whole, *(value for of in bars.values() for value in of.values())) * 1.12)
    axes.set_xlabel(_DENSITY)
    axes.xaxis.set_major_formatter(PERCENT)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _density_lines(axes: Axes, rounds: Sequence[Record], layers: Sequence[str]) -> None:
    """Draw the densities of the layers and of the model over the rounds."""
    whole = _known(rounds, "density")
    drawn = [value for _, value in whole]
    if whole:
        # Below the layers, which it would hide where all have the same density.
        _line(axes, *zip(*whole, strict=True), label="all prunable weights", color="black", linewidth=3.4)
    for place, name in enumerate(layers):
        of_layer = ((r["round"], (r.get("layer_densities") or {}).get(name)) for r in rounds)
        points = [(number, value) for number, value in of_layer if value is not None]
        drawn += (value for _, value in points)
        colour = colormaps["viridis"](0.15 + 0.8 * place / max(1, len(layers) - 1))
        _line(axes, *zip(*points, strict=True), label=name, color=colour, linewidth=1.4)
    _density_axis(axes, [value for value in drawn if value > 0] or [1.0])
    _round_axis(axes, rounds)


def classes_figure(rounds: Sequence[Record], title: str) -> RunFigure:
    """Draw, for each class of device, who took part, and the global model's accuracy on its data if known.

    Bars are shares of a class's clients, over the rounds of training.
    """
    totals, metric = class_totals(rounds), next(iter(metric_names(rounds)), "accuracy")
    lines = {}
    for name in totals:
        of_class = ((r["round"], (r.get("classes") or {}).get(name, {}).get(metric)) for r in rounds)
        if points := [(number, value) for number, value in of_class if value is not None]:
            lines[name] = points
    height = 1.8 + 0.45 * len(totals)
    if lines:
        figure = RunFigure(figsize=(11.0, max(4.8, height)), layout="constrained")
        figure.suptitle(f"{title}: classes of devices")
        scores, attendance = figure.subplots(1, 2)
        _class_scores(scores, rounds, lines, metric)
        attendance.set_title("clients of the class, over the rounds")
    else:
        figure = RunFigure(figsize=(8.0, height), layout="constrained")
        attendance = figure.subplots()
        attendance.set_title(f"{title}: clients of each class of device, over the rounds")
    _attendance(attendance, totals, sum(record["round"] > 0 for record in rounds))
    found = attendance.get_legend_handles_labels()
    if lines:
        figure.legend(*found, loc="outside lower right", ncols=4, frameon=False)
    else:
        figure.legend(*found, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _class_scores(
    axes: Axes, rounds: Sequence[Record], lines: dict[str, list[tuple[int, float]]], metric: str
) -> None:
    for (name, points), colour in zip(lines.items(), cycle(COLOURS), strict=False):
        _line(axes, *zip(*points, strict=True), label=name, color=colour)
    axes.set_title("global model on the class's held-out data")
    _metric_axis(axes, metric)
    _round_axis(axes, rounds)
    axes.legend(frameon=False, fontsize="small" if len(lines) > _MOST_NAMES else None)


def _metric_axis(axes: Axes, metric: str) -> None:
    """Label the vertical axis; shares are in percent."""
    axes.set_ylabel(f"{words(metric)} (%)" if is_share(metric) else words(metric))
    if is_share(metric):
        axes.yaxis.set_major_formatter(PERCENT)


def _attendance(axes: Axes, totals: dict[str, Record], training: int) -> None:
    left = dict.fromkeys(totals, 0.0)
    height = 0.6
    for key, colour in _ATTENDANCE.items():
        shares = [totals[name][key] / (totals[name]["clients"] * max(training, 1)) for name in totals]
        if any(shares):
            label = "took part" if key == "ok" else key
            axes.barh(list(totals), shares, height, left=list(left.values()), color=colour, label=label)
            left = {name: left[name] + share for name, share in zip(totals, shares, strict=True)}
    rest = [1 - share for share in left.values()]
    axes.barh(list(totals), rest, height, left=list(left.values()), color="#E8E8E8", label="not asked")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of its clients (%)")
    axes.xaxis.set_major_formatter(PERCENT)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)


#: Draws a figure from the records of rounds and a title.
Draw = Callable[[Sequence[Record], str], RunFigure]

FIGURES: dict[str, Draw] = {
    "costs": costs_figure,
    "density": density_figure,
    "classes": classes_figure,
}


def log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic with plain numbers, as many as there is room for."""
    axes.set_xscale("log")
    span = max(values, default=1.0) / min(values, default=1.0)
    if values:
        axes.set_xlim(min(values) / max(1.3, span**0.06), max(values) * max(1.3, span**0.06))
    steps = (1.0, 2.0, 3.0, 5.0) if span < 10 else (1.0, 3.0) if span < 300 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _new(title: str, what: str) -> tuple[RunFigure, Axes]:
    figure = RunFigure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(f"{title}: {what}")
    return figure, axes


def _known(rounds: Sequence[Record], column: str) -> list[tuple[int, float]]:
    """Return (round, value) of every round that has a value in the column."""
    return [(record["round"], record[column]) for record in rounds if record.get(column) is not None]


def _cumulative(rounds: Sequence[Record], cost: str) -> list[float]:
    return list(accumulate(float(record[cost] or 0) for record in rounds))


def _line(axes: Axes, numbers: Iterable[float], values: Iterable[float], **style: Any) -> None:
    """Draw a line, with a marker at each point where there are few."""
    numbers = list(numbers)
    axes.plot(
        numbers, list(values), marker="o" if len(numbers) <= _MOST_MARKERS else None, markersize=3.5, **style
    )


def _mark(axes: Axes, point: tuple[int, float], name: str, **style: Any) -> None:
    """Frame one point and say in the legend which it is."""
    number, value = point
    axes.plot(
        number, value, ls="none", ms=9, mfc="none", label=f"{name}: {value:.2%} in round {number}", **style
    )


def _cost(axes: Axes, numbers: list[int], lines: dict[str, list[float]], quantity: str, label: str) -> None:
    """Draw costs in the unit that suits the largest; linear, since they add up."""
    values = [value for line in lines.values() for value in line]
    factor, unit = scale(quantity, max(values, default=0.0))
    for (name, line), colour, style in zip(lines.items(), COLOURS, ("-", (0, (4, 3))), strict=False):
        # Dashed, since it may lie on the first.
        _line(
            axes,
            numbers,
            [value / factor for value in line],
            label=name or None,
            color=colour,
            linestyle=style,
        )
    axes.set_ylabel(f"{label} ({unit})")
    axes.set_ylim(0, max(values, default=0.0) / factor * 1.08 or 1.0)


def _round_axis(axes: Axes, rounds: Sequence[Record]) -> None:
    """Label the rounds, at whole numbers; a single round gets room on both sides."""
    numbers = [record["round"] for record in rounds]
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))
    if len(set(numbers)) == 1:
        axes.set_xlim(numbers[0] - 1, numbers[0] + 1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _density_axis(axes: Axes, drawn: Sequence[float]) -> None:
    """Label densities, on a logarithmic axis where they span more than a factor of ten."""
    axes.set_ylabel(_DENSITY)
    if max(drawn) > 10 * min(drawn):
        axes.set_yscale("log")
        axes.set_ylim(min(drawn) / 1.4, max(drawn) * 1.4)
        wide = max(drawn) > 1000 * min(drawn)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(0, max(drawn) * 1.08)
    axes.yaxis.set_major_formatter(PERCENT)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if len(labels) <= 3 else 2
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
