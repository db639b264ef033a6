"""What a person sees while a study goes on: a bar on a terminal, a line for each run that ends elsewhere."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from fedprune.results.measures import metric_form
from fedprune.studies.outcomes import Metric, Outcome
from fedprune.studies.plan import PlannedRun
from fedprune.units import format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from fedprune.studies.execute import Ended
    from fedprune.studies.study import Study


class Progress:
    """Shows how far a study is; a context manager that is told how its runs go on.

    Parameters
    ----------
    study : Study
        What is run.
    shown : bool
        Whether anything is shown.
    stream : TextIO, optional
        Where to write, standard error by default: standard output is for results.
    """

    def __init__(self, study: Study, *, shown: bool = True, stream: TextIO | None = None) -> None:
        self._study = study
        self._shown = shown
        self._stream = stream or sys.stderr
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        """Start the bar where the stream is a terminal."""
        runs = [*self._study.trials(), *self._study.planned()]
        searches = self._study.searches
        self._total = sum(run.scenario.rounds for run in runs)
        self._total += sum(search.planned_runs * search.likely.scenario.rounds for search in searches)
        self._names = Counter(run.identity for run in runs)  # A run may stand under several names.
        self._count = len(runs) + sum(search.planned_runs for search in searches)
        states = [self._study.folder.status(run) for run in runs]
        self._complete = states.count("complete")
        self._rounds = sum(
            run.scenario.rounds for run, state in zip(runs, states, strict=True) if state == "complete"
        )
        if self._shown and self._stream.isatty():
            self._bar = _bar(self._total, self._stream)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def _done(self) -> tuple[int, int]:
        """Return how many runs have ended well, and their rounds; a run that a search need not do counts."""
        ended = [
            (search.planned_runs - search.runs_left, search.likely.scenario.rounds)
            for search in self._study.searches
        ]
        rounds = sum(count * rounds for count, rounds in ended)
        return self._complete + sum(count for count, _ in ended), self._rounds + rounds

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if not self._shown:
            return
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_begin(self, run: PlannedRun) -> None:
        """Do nothing: a line when it ends is enough."""

    def on_end(self, ended: Ended) -> None:
        """Show how a run ended."""
        if ended.status == "complete" and ended.run.number is None:
            names = self._names[ended.run.identity] or 1
            self._complete += names
            self._rounds += names * ended.run.scenario.rounds
        outcome = self._study.folder.outcome(ended.run)
        self.note(f"[{self._done()[0]}/{self._count}] {line_of(ended, outcome)}")
        for warning in ended.warnings:
            self.note(f"    {ended.run.title}: warning: {warning}")

    def on_tick(self, running: Sequence[PlannedRun]) -> None:
        """Show how many rounds there are of the runs that go on."""
        if self._bar is None:
            return
        done = [self._study.folder.rounds_done(run) for run in running]
        texts = [
            f"{run.group} {rounds}/{run.scenario.rounds}" for run, rounds in zip(running, done, strict=True)
        ]
        complete, before = self._done()
        self._bar.update(
            self._bar.task_ids[0],
            completed=before + sum(done),
            runs=f"{complete}/{self._count}",
            running="; ".join(texts),
        )


def line_of(ended: Ended, outcome: Outcome) -> str:
    """Return how a run ended as one line of plain text."""
    if ended.status == "halted":
        return f"{ended.run.title}: {ended.reason}"
    if ended.status != "complete" or outcome.summary is None:
        return f"{ended.run.title}: {ended.status}: {ended.reason}"
    metric = Metric.of(outcome.summary)
    value = outcome.summary.get(metric.final)
    text = "-" if value is None else metric_form(metric.name)(value)
    return f"{ended.run.title}: {metric.name} {text}, {format_seconds(ended.seconds)}"


def _bar(rounds: int, stream: TextIO) -> Bar:
    """Return a bar that is not yet shown."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("runs {task.fields[runs]}"),
        BarColumn(bar_width=24),
        TimeRemainingColumn(),
        TextColumn("{task.fields[running]}"),
        console=Console(file=stream),
    )
    bar.add_task("study", total=rounds, runs="", running="")
    return bar
