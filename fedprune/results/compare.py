"""Runs side by side: one table, one CSV file, one figure.

Costs are also given relative to the first dense run among them. Runs are comparable where
their scenarios differ in the strategy alone; what else differs is said below the table.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedprune.errors import UserError
from fedprune.results.measures import is_share, known_measures, measures, words
from fedprune.results.records import COSTS, Record, relative_costs
from fedprune.results.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from fedprune.results.figures import RunFigure

#: Parts of a scenario that may differ between compared runs; the clients' algorithm follows the strategy.
FREE = ("name", "strategy", "engine", "logging", "clients.algorithm", "clients.training.execution")
_MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Comparison:
    """Runs side by side; made by `compare`.

    ``labels`` tell the runs apart, ``reference`` is the place of the first dense run (None
    without one), ``differences`` names the settings in which the scenarios differ besides
    the strategy.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    reference: int | None
    differences: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The metric by which the runs are compared: the first run's."""
        return str(self.runs[0].summary.get("headline", "accuracy"))

    def relative(self, run: Run) -> Record | None:
        """Return each cost of a run divided by that of the first dense run; None without one."""
        if self.reference is None:
            return None
        costs = {cost: run.summary[cost] for cost in COSTS if run.summary.get(cost) is not None}
        return relative_costs(costs, self.runs[self.reference].summary)

    def rows(self) -> list[list[str]]:
        """Return the table as text: a row a measure, a column a run, names first."""
        rows = [["run", *self.labels]]
        summaries, relative = [run.summary for run in self.runs], [self.relative(run) for run in self.runs]
        for measure in known_measures(summaries):
            rows.append([measure.label, *measure.texts(summaries, relative)])
        return rows

    def table(self) -> Table:
        """Return the table for a terminal; what a reader has to know besides is in `notes`."""
        from rich import box
        from rich.table import Table

        head, *rows = self.rows()
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(head[0], no_wrap=True)
        for label in head[1:]:
            table.add_column(label, overflow="fold", justify="right")
        for row in rows:
            table.add_row(*row)
        return table

    def notes(self) -> str:
        """Return what a reader of the table has to know; "" where there is nothing."""
        notes = []
        if self.reference is not None:
            notes.append(f"In brackets: relative to {self.labels[self.reference]}, which is dense.")
        if self.differences:
            notes.append(f"Not under equal conditions: the runs differ in {', '.join(self.differences)}.")
        return "\n".join(notes)

    def write_csv(self, path: Path) -> None:
        """Write the raw numbers: a row a run, its summary, and its costs relative to the dense run.

        The columns are the numbers and texts of all summaries and of all measures, and ``faults_KIND`` for
        each kind of fault; one that a run does not have is empty.
        """
        summaries = [_scalars(run.summary) for run in self.runs]
        found = dict.fromkeys(key for summary in summaries for key in summary)
        found.update(dict.fromkeys(measure.key for measure in measures(summaries)))
        keys = [key for key in found if key != "name"]
        with _writable(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "directory", *keys, *(f"relative_{cost}" for cost in COSTS)])
            for label, run, summary in zip(self.labels, self.runs, summaries, strict=True):
                relative = self.relative(run) or {}
                values = [summary.get(key) for key in keys]
                writer.writerow([label, run.directory, *values, *(relative.get(cost) for cost in COSTS)])

    def figure(self) -> RunFigure:
        """Draw the headline metric over the rounds, and against total traffic, computation and peak memory.

        The curves follow the rounds that were evaluated; the marked point is the last of them. Costs are
        logarithmic. Peak memory is one number a run, so there is no curve.
        """
        from fedprune.results.figures import PERCENT, RunFigure

        figure = RunFigure(figsize=(11.0, 8.4), layout="constrained")
        panels = figure.subplots(2, 2, sharey=True)
        over_rounds, *others = panels.flat
        self._draw_rounds(over_rounds)
        for axes, (title, quantity, costs) in zip(others, _PANELS, strict=True):
            self._draw(axes, title, quantity, costs)
        for axes in panels.flat:
            if is_share(self.headline):
                axes.yaxis.set_major_formatter(PERCENT)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in panels[:, 0]:
            unit = " (%)" if is_share(self.headline) else ""
            axes.set_ylabel(f"{words(self.headline)} on the server's test data{unit}")
        handles, labels = over_rounds.get_legend_handles_labels()
        # As many columns as there is room for.
        columns = max(1, min(4, len(labels), 130 // (max(map(len, labels)) + 6)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        return figure

    def save_figure(self, path: Path) -> None:
        """Write `figure` to a file; its suffix says the format (png, svg, pdf)."""
        try:
            self.figure().savefig(_writable(path), dpi=144)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def _repr_html_(self) -> str:
        """Return the table, for notebooks."""
        from html import escape

        rows = "".join(
            "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows()
        )
        return f"<table>{rows}</table><p>{escape(self.notes())}</p>"

    def _draw_rounds(self, axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        column = self.headline
        for place, (label, run) in enumerate(zip(self.labels, self.runs, strict=True)):
            known = [(r["round"], r[column]) for r in run.rounds if r.get(column) is not None]
            _curve_of(axes, place, label if known else f"{label} (never evaluated)", known)
        axes.set_title("Rounds")
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9, steps=[1, 2, 5, 10]))

    def _draw(self, axes: Axes, title: str, quantity: str, costs: Sequence[str]) -> None:
        from fedprune.results.figures import log_axis, scale

        curves = [_curve(run.rounds, self.headline, costs) for run in self.runs]
        spent = [cost for curve in curves for cost, _ in curve if cost > 0]
        factor, unit = scale(quantity, max(spent, default=1.0))
        for place, (label, curve) in enumerate(zip(self.labels, curves, strict=True)):
            points = [(cost / factor, value) for cost, value in curve if cost > 0]
            if "peak_memory_bytes" in costs:
                points = points[-1:]
            _curve_of(axes, place, label, points)
        axes.set_title(title)
        axes.set_xlabel(f"{title.lower()} ({unit})")
        log_axis(axes, [cost / factor for cost in spent])


def _curve_of(axes: Axes, place: int, label: str, points: Sequence[tuple[float, float]]) -> None:
    """Draw a run's points as a line in the run's colour, the last one marked."""
    from fedprune.results.figures import COLOURS

    colour, marker = COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)]
    axes.plot([x for x, _ in points], [y for _, y in points], color=colour, lw=1.2, alpha=0.7)
    axes.plot([x for x, _ in points[-1:]], [y for _, y in points[-1:]], marker, color=colour, label=label)


_PANELS = (
    ("Total traffic, down and up", "bytes", ("bytes_down", "bytes_up")),
    ("Total computation", "flops", ("flops",)),
    ("Peak memory of the largest client", "bytes", ("peak_memory_bytes",)),
)


def compare(runs: Sequence[Run]) -> Comparison:
    """Put runs side by side.

    Raises
    ------
    UserError
        Where there is no run, or one is given twice.
    """
    if not runs:
        raise UserError("no run to compare: give at least one run folder")
    for folder, times in Counter(run.directory.resolve() for run in runs).items():
        if times > 1:
            raise UserError(f"{folder}: given {times} times")
    dense = (place for place, run in enumerate(runs) if _is_dense(run))
    return Comparison(tuple(runs), _labels(runs), next(dense, None), _differences(runs))


def _is_dense(run: Run) -> bool:
    """Return whether a run kept every weight and sent every one: masks of frozen weights are far smaller."""
    relative = run.summary.get("relative") or {}
    return run.summary.get("density") == 1 and (relative.get("bytes_up") or 1) > 0.99


def _labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the runs' names; where two are the same, with as much of their folders as tells them apart."""
    times = Counter(run.name for run in runs)
    paths = [run.directory.resolve().parts for run in runs]
    length = 1
    while len({path[-length:] for path in paths}) < len(paths):
        length += 1
    return tuple(
        run.name if times[run.name] == 1 else f"{run.name} ({'/'.join(path[-length:])})"
        for run, path in zip(runs, paths, strict=True)
    )


def _differences(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the settings, dotted, that differ between the scenarios and are not the strategy's."""
    documents = [dict(_flat(run.document)) for run in runs]
    keys = dict.fromkeys(key for document in documents for key in document)
    return tuple(key for key in keys if any(d.get(key) != documents[0].get(key) for d in documents))


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings, dotted, that are to be the same."""
    for key, value in document.items():
        if f"{prefix}{key}" in FREE:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _scalars(summary: Record) -> Record:
    """Return the numbers and texts of a summary, faults by kind among them; no cell of a table has parts."""
    scalars = {key: value for key, value in summary.items() if not isinstance(value, dict | list)}
    return scalars | {f"faults_{kind}": count for kind, count in (summary.get("faults") or {}).items()}


def _curve(rounds: Sequence[Record], metric: str, costs: Sequence[str]) -> list[tuple[float, float]]:
    """Return (what was spent so far, the metric) of every evaluated round from the first on."""
    total = COSTS[costs[0]]
    each = (sum(float(record.get(cost) or 0) for cost in costs) for record in rounds)
    so_far = accumulate(each, lambda before, now: total((before, now)))
    return [
        (spent, record[metric])
        for spent, record in zip(so_far, rounds, strict=True)
        if record.get(metric) is not None and record["round"] > 0
    ]


def _writable(path: Path) -> Path:
    """Return the path, with its folder made; raise UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of a file")
    return path
