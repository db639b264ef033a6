"""What a person sees while a run goes on: a bar on a terminal, a line a round or step elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from fedprune.costs.ledger import RoundRecord, Scores, TaskRecord
from fedprune.results.measures import format_share, metric_form, words
from fedprune.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


class Progress:
    """Shows how far a run is; a context manager and a listener for tasks, rounds and steps.

    Parameters
    ----------
    rounds
        How many rounds are planned.
    stream
        Where to write, standard error by default: standard output is for results.
    """

    def __init__(self, rounds: int, stream: TextIO | None = None) -> None:
        self._rounds = rounds
        self._stream = stream or sys.stderr
        self._bar: Bar | None = None
        self._headline = "-"
        self._traffic = 0
        self._replies = 0

    def __enter__(self) -> Self:
        """Start the bar where the stream is a terminal."""
        if self._stream.isatty():
            self._bar = _bar(self._rounds, self._stream)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """Show a line that stays."""
        if self._bar is None:
            print(text, file=self._stream, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_task(self, task: TaskRecord) -> None:
        """Count the replies of the round that goes on."""
        self._replies += 1
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], replies=f"{self._replies} replies")

    def on_step(self, step: str) -> None:
        """Show what is done before a round ends."""
        if self._bar is None:
            print(step, file=self._stream, flush=True)
        else:
            self._bar.update(self._bar.task_ids[0], replies=step)

    def on_round(self, round: RoundRecord) -> None:
        """Show the round's numbers."""
        self._replies = 0
        self._traffic += round.bytes_down + round.bytes_up
        self._headline = "".join(headline(round.scores)) or self._headline
        if self._bar is None:
            print(line_of(round, self._rounds), file=self._stream, flush=True)
            return
        self._bar.update(
            self._bar.task_ids[0],
            completed=round.round,
            headline=self._headline,
            density=format_share(round.density),
            traffic=format_bytes(self._traffic),
            replies="",
        )


def headline(scores: Scores, label: str | None = None) -> list[str]:
    """Return the headline metric as "accuracy 61.25%", or with a label for its name; [] where unknown."""
    name, value = next(iter(scores.items()), ("", None))
    return [] if value is None else [f"{label or words(name)} {metric_form(name)(value)}"]


def line_of(round: RoundRecord, rounds: int) -> str:
    """Return one round as one line of plain text."""
    parts = [
        *headline(round.scores),
        *headline(round.personal_scores, "personal"),
        f"density {format_share(round.density)}",
        f"down {format_bytes(round.bytes_down)}",
        f"up {format_bytes(round.bytes_up)}",
        f"{round.clients_ok} tasks",
        f"{round.clients_failed} failed" if round.clients_failed else None,
        format_seconds(round.wall_seconds),
    ]
    return f"round {round.round}/{rounds}: " + ", ".join(part for part in parts if part)


def _bar(rounds: int, stream: TextIO) -> Bar:
    """Return a bar that is not yet shown."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[headline]}"),
        TextColumn("density {task.fields[density]}"),
        TextColumn("traffic {task.fields[traffic]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[replies]}"),
        console=Console(file=stream),
    )
    bar.add_task("run", total=rounds, headline="-", density="-", traffic="-", replies="")
    return bar
