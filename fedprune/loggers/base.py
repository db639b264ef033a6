"""What every logger shares: what it hears of a run, as plain numbers and text.

A logger writes nothing that results depend on. It is called from one thread, and what it raises does not end
a run once that has begun: see `fedprune.loggers.channels`.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from fedprune.scenario import Scenario


@dataclass(frozen=True)
class RunStart:
    """A run that begins, or goes on.

    Parameters
    ----------
    directory : Path
        Its run folder, absolute.
    scenario : Scenario
        What is run, as resolved.
    last_round : int, optional
        The round of the checkpoint that the run goes on from; None for a new run. Rounds after it that a
        tracker has heard of come again.
    earlier : Sequence[tuple[int, Mapping[str, float]]]
        The rounds up to that one, as `Logger.on_round` is given them, for a tracker that lacks them.
    """

    directory: Path
    scenario: Scenario
    last_round: int | None = None
    earlier: Sequence[tuple[int, Mapping[str, float]]] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.scenario.name

    @property
    def parameters(self) -> dict[str, bool | int | float | str]:
        """The scenario, flat: "strategy.density" -> 0.05; a list is text, JSON. Its loggers are left out."""
        document = self.scenario.model_dump(mode="json", exclude={"logging"})
        return {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in _flat(document, ".")
        }


@dataclass(frozen=True)
class RunEnd:
    """How a run ended.

    Parameters
    ----------
    status : str
        "complete", "interrupted" or "failed".
    reason : str, optional
        Why, where it is not complete.
    summary : Mapping[str, Any]
        ``summary.json``; empty where it could not be written.
    files : Sequence[Path]
        What the run left of the model, the summary and the figures.
    """

    status: Literal["complete", "interrupted", "failed"]
    reason: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict, repr=False)
    files: Sequence[Path] = ()

    @property
    def scalars(self) -> dict[str, float]:
        """The numbers of the summary, flat: "final_accuracy", "relative/bytes_up"."""
        # Reasons of failures are sentences, which no tracker takes as a name.
        return scalars({key: value for key, value in self.summary.items() if key != "failures"})


class Logger(ABC):
    """Tells a tracker of a run.

    A subclass has ``on_round``, and where wanted ``on_start``, ``on_end`` and options:

    >>> class Printed(Logger):
    ...     def on_round(self, number, scalars):
    ...         print(number, scalars["density"])

    The methods are called one after the other on a thread beside the run. What ``on_start`` raises is an
    error before the run begins; what the others raise is a warning.

    Attributes
    ----------
    needs : Mapping[str, str]
        Modules that it imports and that fedprune does not bring -> what pip installs them by. A scenario that
        names the logger is refused where one is missing.
    """

    needs: ClassVar[Mapping[str, str]] = {}

    class Options(BaseModel):
        """The logger's options: keys beside its name in the scenario; a subclass adds its own."""

        model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def __init__(self, options: Options) -> None:
        self.options: Any = options

    def on_start(self, start: RunStart) -> None:  # noqa: B027  # Not every tracker needs it.
        """Hear that a run begins or goes on."""

    @abstractmethod
    def on_round(self, number: int, scalars: Mapping[str, float]) -> None:
        """Hear of one round that has ended; round 0 is what came before training.

        Parameters
        ----------
        number : int
            The round.
        scalars : Mapping[str, float]
            Its numbers by the names of ``rounds.jsonl``; what has parts is flat:
            "layer_densities/conv1.weight", "classes/raspberry-pi-4/bytes_up". What is null is left out.
        """

    def on_end(self, end: RunEnd) -> None:  # noqa: B027
        """Hear how the run ended; the last call."""


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record but for its round, flat, with "/" between names."""
    return {
        key: value
        for key, value in _flat(record, "/")
        if key != "round" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def _flat(record: Mapping[str, Any], joint: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if isinstance(value, Mapping):
            yield from _flat(value, joint, f"{prefix}{key}{joint}")
        else:
            yield f"{prefix}{key}", value
