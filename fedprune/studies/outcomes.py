"""What the runs of a study came to, as statistics, tables, figures and the report see it.

Nothing here or above assumes accuracy: the summary of a run names its headline metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedprune.errors import UserError
from fedprune.results.records import Record
from fedprune.results.run import Run


@dataclass(frozen=True)
class Metric:
    """The headline metric of a run.

    ``name`` is its column in ``rounds.jsonl``; ``final_<name>`` and ``best_<name>`` are its keys in
    ``summary.json``.
    """

    name: str = "accuracy"
    higher_is_better: bool = True

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Metric:
        """Return the headline metric that a summary names; that of older summaries is accuracy."""
        return cls(summary.get("headline", "accuracy"), summary.get("higher_is_better", True))

    @property
    def final(self) -> str:
        """The summary's key of the last value."""
        return f"final_{self.name}"

    @property
    def best(self) -> str:
        """The summary's key of the best value of any round."""
        return f"best_{self.name}"

    def reaches(self, value: float, target: float) -> bool:
        """Return whether a value is as good as a target."""
        return value >= target if self.higher_is_better else value <= target


@dataclass(frozen=True)
class Outcome:
    """One run of a study, ended or not.

    Attributes
    ----------
    variant
        The name of the run in the study file; of a run by itself, the run's name.
    point
        The grid's values in it, dotted key to value; empty where no grid applies.
    seed
        Its seed. Outcomes of one seed share data split, initial weights, client sampling and devices.
    summary
        ``summary.json``; None where the run has not begun. Its ``status`` says whether it is complete.
    rounds
        The lines of ``rounds.jsonl``.
    directory
        Its run folder, from which ``clients.jsonl`` is read where that is wanted; None where there is none.
    document
        Its scenario as plain data.
    """

    variant: str
    point: Mapping[str, Any]
    seed: int
    summary: Record | None
    rounds: Sequence[Record] = field(repr=False, default=())
    directory: Path | None = None
    document: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def group(self) -> str:
        """What the outcome is called together with those of other seeds: "FedTiny, density 0.05"."""
        return label(self.variant, self.point)

    @property
    def complete(self) -> bool:
        """Whether the run has ended well."""
        return self.summary is not None and self.summary["status"] == "complete"


def label(variant: str, point: Mapping[str, Any]) -> str:
    """Return a variant's name and the grid's values in words, a key by its last part.

    Examples
    --------
    >>> label("FedTiny", {"strategy.density": 0.05})
    'FedTiny, density 0.05'
    """
    values = (f"{key.rpartition('.')[2].replace('_', ' ')} {_text(value)}" for key, value in point.items())
    return ", ".join([variant, *values])


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return str(value.get("name", value)) if isinstance(value, Mapping) else str(value)


def outcome_of(run: Run, variant: str | None = None, point: Mapping[str, Any] | None = None) -> Outcome:
    """Return the outcome of a run that was read from its folder."""
    return Outcome(
        variant=run.name if variant is None else variant,
        point=dict(point or {}),
        seed=int(run.summary["seed"]),
        summary=run.summary,
        rounds=run.rounds,
        directory=run.directory,
        document=run.document,
    )


def headline(outcomes: Iterable[Outcome]) -> Metric:
    """Return the headline metric that all outcomes have.

    Raises
    ------
    UserError
        Where two of them have different ones: they are no study of one task.
    """
    summaries = [outcome.summary for outcome in outcomes if outcome.summary is not None]
    # One that failed before it had a metric, or cannot be read, names none.
    named = [each for each in summaries if "headline" in each or each["status"] == "complete"]
    metrics = {Metric.of(summary) for summary in named}
    if len(metrics) > 1:
        names = ", ".join(sorted(metric.name for metric in metrics))
        raise UserError(f"the runs have different headline metrics ({names}): compare those of one task")
    return next(iter(metrics), Metric())
