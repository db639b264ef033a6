"""Runs by themselves, of no study, as outcomes: which of them belong together, and what they are called."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedprune.results.compare import compare
from fedprune.results.folder import SCENARIO
from fedprune.results.run import Run
from fedprune.studies.outcomes import Outcome, outcome_of
from fedprune.studies.report.page import write_report
from fedprune.studies.report.settings import flat

PAGE = "report.html"
#: Settings that a group's name can bear.
_MOST_NAMED = 3
#: What may differ between the runs of one group.
_FREE = ("name", "seed", "engine.", "logging")


def outcomes_of(runs: Sequence[Run]) -> list[Outcome]:
    """Return the outcomes of some runs, those of one name and one scenario, but for the seed, together.

    Where runs of a name differ in their strategy, the strategy is part of what they are called; where they
    differ in up to three settings, these are their grid. Runs that differ in more, and repetitions of one
    seed, are told apart by their folders.

    Raises
    ------
    UserError
        Where there is no run, or one is given twice.
    """
    labels = dict(zip((run.directory for run in runs), compare(runs).labels, strict=True))
    families: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        families.setdefault((run.name, _strategy(run)), []).append(run)
    names = [name for name, _ in families]
    found: dict[Path, Outcome] = {}
    for (name, strategy), family in families.items():
        variant = name if names.count(name) == 1 else f"{name}, {strategy}"
        settings = [_settings(run.document) for run in family]
        keys = dict.fromkeys(key for each in settings for key in each)
        moving = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
        points = [{key: each.get(key) for key in moving} for each in settings]
        places = [(run.summary["seed"], point) for run, point in zip(family, points, strict=True)]
        apart = len(moving) > _MOST_NAMED or any(place in places[:n] for n, place in enumerate(places))
        for run, point in zip(family, points, strict=True):
            found[run.directory] = (
                outcome_of(run, labels[run.directory]) if apart else outcome_of(run, variant, point)
            )
    return [found[run.directory] for run in runs]


def report_runs(
    runs: Sequence[Run],
    path: Path | None = None,
    *,
    title: str | None = None,
    reference: str | None = None,
    target: float | None = None,
) -> Path:
    """Write the report of some runs that are no study; return where it is.

    Parameters
    ----------
    runs
        At least one.
    path
        The page; None takes ``report.html`` in the run folder of a single run, in the working directory of
        several.
    title
        Its heading; None takes the names of the runs.
    reference, target
        See `write_report`; without a reference the first dense run is it, where there is one.
    """
    outcomes = outcomes_of(runs)
    dense = compare(runs).reference
    variants = list(dict.fromkeys(outcome.variant for outcome in outcomes))
    if reference is None and dense is not None and len(variants) > 1:
        reference = outcomes[dense].variant
    if path is None:
        path = runs[0].directory / PAGE if len(runs) == 1 else Path(PAGE)
    again = [f"fedprune run {shlex.quote(str(run.directory / SCENARIO))} --out NEW_FOLDER" for run in runs]
    again.append(shlex.join(["fedprune", "report", *(str(run.directory) for run in runs)]))
    return write_report(
        outcomes,
        path,
        title=title or _title(variants),
        reference=reference,
        target=target,
        command="\n".join(again),
    )


def _title(variants: Sequence[str]) -> str:
    if len(variants) <= 3:
        return ", ".join(variants)
    return f"{', '.join(variants[:2])} and {len(variants) - 2} more"


def _settings(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat(document).items() if not key.startswith(_FREE)}


def _strategy(run: Run) -> str:
    return str(run.summary["strategy"])
