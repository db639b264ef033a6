"""A run's loggers beside it: each on a thread of its own, so that no round waits for a tracker.

`logged` surrounds a run. The run waits for its loggers before the first round, so that a tracker that cannot
be used is known before anything runs; from then on a logger that raises is a warning, once, and goes on to
hear of later rounds. What a logger does with what it hears is its own matter.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from time import monotonic

from fedprune import registry
from fedprune.costs.ledger import Listener, RoundRecord, TaskRecord
from fedprune.errors import UserError
from fedprune.loggers.base import Logger, RunEnd, RunStart, scalars
from fedprune.results.folder import FIGURES, MODEL, ROUNDS, SCENARIO, SUMMARY, RunFolder
from fedprune.results.records import read_lines
from fedprune.scenario import Scenario
from fedprune.server.federation import announce
from fedprune.wording import one_line

#: Seconds that a run waits for its loggers before its first round, and at its end.
START_PATIENCE = 60.0
END_PATIENCE = 300.0

_logger = logging.getLogger(__name__)


class Channel:
    """One logger and its thread.

    Parameters
    ----------
    name : str
        The logger's name in the scenario.
    logger : Logger
        The logger, of which nobody else calls a method.
    start : RunStart
        What it hears first.
    """

    def __init__(self, name: str, logger: Logger, start: RunStart) -> None:
        self.name = name
        self._logger = logger
        self._start = start
        self._calls = SimpleQueue[Callable[[], None] | None]()
        self._started = Event()
        self._fault: Exception | SystemExit | None = None
        self._warned = False
        self._left_alone = False
        # A daemon: a tracker that never answers must not keep the process.
        self._thread = Thread(target=self._work, name=f"logger {name}", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the logger has started; warn where that takes longer.

        Raises
        ------
        UserError
            Where it cannot.
        """
        if not self._started.wait(seconds):
            self._warn("has not started yet: the run does not wait for it")
        elif self._fault is not None:
            raise UserError(f"logger {self.name} cannot start: {one_line(self._fault)}") from self._fault

    def tell(self, number: int, values: dict[str, float]) -> None:
        """Have the logger hear of a round, some time."""
        self._calls.put(lambda: self._logger.on_round(number, values))

    def end(self, end: RunEnd) -> None:
        """Have the logger hear of the end, some time; it is the last that it hears."""
        self._calls.put(lambda: self._logger.on_end(end))
        self._calls.put(None)

    def join(self, seconds: float) -> None:
        """Wait until the logger has heard all; leave it alone, with a warning, where that takes longer."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._left_alone = True
            self._warn("has not ended yet: nobody waits for it")

    def _work(self) -> None:
        try:
            self._logger.on_start(self._start)
        except (Exception, SystemExit) as error:  # Some clients of trackers exit where they cannot log in.
            self._fault = error
            if self._warned:  # The run goes on already.
                self._warn(f"could not start: {one_line(error)}")
            return
        finally:
            self._started.set()
        failed = False
        while (call := self._calls.get()) is not None and not self._left_alone:
            try:
                call()
            except (Exception, SystemExit) as error:
                if not failed:
                    self._warn(f"failed, and the run goes on; this is said once: {one_line(error)}")
                failed = True

    def _warn(self, what: str) -> None:
        self._warned = True
        _logger.warning("logger %s %s", self.name, what)


class Channels:
    """All loggers of a run; a `fedprune.costs.ledger.Listener`."""

    def __init__(self, channels: Sequence[Channel]) -> None:
        self._channels = channels

    def wait(self, listeners: Iterable[Listener]) -> None:
        """Wait for the loggers to start; tell listeners so.

        Raises
        ------
        UserError
            Where one cannot.
        """
        if self._channels:
            announce(listeners, f"starting {', '.join(channel.name for channel in self._channels)}")
        until = monotonic() + START_PATIENCE
        for channel in self._channels:
            channel.wait(max(0.0, until - monotonic()))

    def on_task(self, task: TaskRecord) -> None:
        """Do nothing: trackers are told of rounds."""

    def on_round(self, round: RoundRecord) -> None:
        """Have every logger hear of a round."""
        if self._channels:
            values = scalars(round.columns())
            for channel in self._channels:
                channel.tell(round.round, values)

    def end(self, end: RunEnd) -> None:
        """Have every logger hear of the end, and wait for them."""
        until = monotonic() + END_PATIENCE
        for channel in self._channels:
            channel.end(end)
        for channel in self._channels:
            channel.join(max(0.0, until - monotonic()))


@contextmanager
def logged(folder: RunFolder, last_round: int | None) -> Iterator[Channels]:
    """Have the loggers of a scenario hear of a run, from its start to what it left in its folder.

    Parameters
    ----------
    folder : RunFolder
        The run's folder, finished inside the block.
    last_round : int, optional
        The round after which the run goes on; None for a new one.
    """
    made = loggers_of(folder.scenario)  # All of them, before the first has started.
    start = _start(folder, last_round) if made else None
    channels = Channels([Channel(name, logger, start) for name, logger in made] if start else ())
    try:
        yield channels
    finally:
        channels.end(_end(folder.directory))


def loggers_of(scenario: Scenario) -> list[tuple[str, Logger]]:
    """Return the loggers that a scenario names, with their names; `fedprune.server.check` has passed them."""
    return [(spec.name, _made(spec.name, spec.options, scenario.directory)) for spec in scenario.logging]


def _made(name: str, options: dict[str, object], directory: Path) -> Logger:
    kind: type[Logger] = registry.load("logger", name, directory)
    return kind(kind.Options.model_validate(options))


def _start(folder: RunFolder, last_round: int | None) -> RunStart:
    rounds = read_lines(folder.directory / ROUNDS)
    return RunStart(
        directory=folder.directory.absolute(),
        scenario=folder.scenario,
        last_round=last_round,
        earlier=[(record["round"], scalars(record)) for record in rounds],
    )


def _end(directory: Path) -> RunEnd:
    """Return how the run in a folder ended; one without a summary has failed."""
    files = [directory.absolute() / name for name in (SCENARIO, SUMMARY, MODEL, *FIGURES)]
    try:
        summary = json.loads((directory / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return RunEnd("failed", f"the summary could not be written: {one_line(error)}")
    there = [file for file in files if file.is_file()]
    return RunEnd(summary["status"], summary["reason"], summary, there)
